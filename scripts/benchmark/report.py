"""What `benchmark.py` measured, as tables and as a plot."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.benchmark.peers import PEERS

PARTS = {
    "text": "one prompt",
    "step": "one guided step",
    "control": "one guided step with a ControlNet",
    "decode": "VAE decode",
    "picture": "whole picture",
}


# Headings, and a row's cell under each; a column that no row has anything for is left out.
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "loading, s": lambda row: f"{row['load_s']:.1f}",
    "first run, s": lambda row: f"{row['first_s']:.1f}" if row["first_s"] else "",
    "peak GB": lambda row: f"{row['peak_bytes'] / 1e9:.2f}",
    "PSNR, dB": lambda row: f"{row['psnr']:.1f}" if row.get("psnr") is not None else "",
    "of the ceiling": lambda row: f"{row['share_of_ceiling']:.0%}" if "share_of_ceiling" in row else "",
}


def table(part: str, size: int, batch: int, rows: dict[str, Any]) -> str:
    """One part as Markdown."""
    ran = [row for row in rows.values() if "seconds" in row]
    own = rows.get("genpipe", {}).get("seconds")
    columns = {heading: cell for heading, cell in COLUMNS.items() if any(cell(row) for row in ran)}
    lines = [f"### {PARTS[part]}, {size} × {size}, batch {batch}", "", _line("", "seconds", "genpipe is", *columns)]
    lines.append(_line(*["---"] * (3 + len(columns))))
    for peer, row in rows.items():
        if "left_out" in row:
            lines.append(_line(PEERS[peer], f"left out: {row['left_out']}", *[""] * (1 + len(columns))))
            continue
        faster = f"{row['seconds'] / own:.2f} × faster" if own and peer != "genpipe" else ""
        lines.append(_line(PEERS[peer], f"{row['seconds']:.4g}", faster, *(cell(row) for cell in columns.values())))
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def ceiling_text(found: dict[str, Any]) -> str:
    rates = ", ".join(f"{kind} {rate:.0f}" for kind, rate in found["gflops_per_second"].items())
    return (
        f"Ceiling of one guided step at {found['size']} × {found['size']}, batch {found['batch']}: "
        f"{found['flops'] / 1e12:.3f} TFLOP in {found['seconds']:.4g} s (GFLOP/s: {rates})\n"
    )


def int8_table(size: int, found: dict[str, dict[str, float]]) -> str:
    lines = [
        f"### Products of one guided step in int8, {size} × {size}, seconds",
        "",
        "| | exact | int8 | quantising | int8 is |",
    ]
    lines += ["|---|---|---|---|---|"]
    for kind, row in found.items():
        faster = row["exact"] / (row["int8"] + row["quantise"])
        lines.append(
            f"| {kind} | {row['exact']:.2f} | {row['int8']:.2f} | {row['quantise']:.2f} | {faster:.2f} × faster |"
        )
    return "\n".join(lines) + "\n"


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of seconds by peer, one panel for each part and size."""
    try:
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        print('no plot: pip install "genpipe[bench]"', file=sys.stderr)
        return
    pyplot.switch_backend("Agg")
    figure, axes = pyplot.subplots(1, len(results), figsize=(4 * len(results), 3.5), squeeze=False)
    for axis, result in zip(axes[0], results, strict=True):
        peers = [peer for peer, row in result["rows"].items() if "seconds" in row]
        axis.bar(peers, [result["rows"][peer]["seconds"] for peer in peers], color="#4477aa")
        axis.set_title(f"{PARTS[result['part']]}\n{result['size']} px, batch {result['batch']}", fontsize=9)
        axis.tick_params(axis="x", rotation=40, labelsize=8)
    axes[0][0].set_ylabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
