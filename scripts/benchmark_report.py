"""What `benchmark.py` measured, as tables and as a plot."""

import importlib
import sys
from pathlib import Path
from typing import Any

from benchmark_peers import PEERS

PARTS = {"text": "one prompt", "step": "one guided step", "decode": "VAE decode", "picture": "whole picture"}


def table(part: str, size: int, batch: int, rows: dict[str, Any]) -> str:
    """One part as Markdown."""
    own = rows.get("genpipe", {}).get("seconds")
    lines = [f"### {PARTS[part]}, {size} × {size}, batch {batch}", ""]
    lines += [
        "| | seconds | genpipe is | loading, s | first run, s | peak GB | PSNR, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer, row in rows.items():
        faster = f"{row['seconds'] / own:.2f} × faster" if own and peer != "genpipe" else ""
        first = f"{row['first_s']:.1f}" if part != "picture" else ""
        psnr = f"{row['psnr']:.1f}" if row.get("psnr") is not None else ""
        peak = f"{row['peak_bytes'] / 1e9:.2f}"
        lines.append(
            f"| {PEERS[peer]} | {row['seconds']:.3f} | {faster} | {row['load_s']:.1f} | {first} | {peak} | {psnr} |"
        )
    return "\n".join(lines) + "\n"


def int8_table(size: int, found: dict[str, dict[str, float]]) -> str:
    lines = [
        f"### Products of one guided step in int8, {size} × {size}, seconds",
        "",
        "| | bf16 | int8 | quantising | int8 is |",
    ]
    lines += ["|---|---|---|---|---|"]
    for kind, row in found.items():
        faster = row["bf16"] / (row["int8"] + row["quantise"])
        lines.append(
            f"| {kind} | {row['bf16']:.2f} | {row['int8']:.2f} | {row['quantise']:.2f} | {faster:.2f} × faster |"
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
        peers = list(result["rows"])
        axis.bar(peers, [result["rows"][peer]["seconds"] for peer in peers], color="#4477aa")
        axis.set_title(f"{PARTS[result['part']]}\n{result['size']} px, batch {result['batch']}", fontsize=9)
        axis.tick_params(axis="x", rotation=40, labelsize=8)
    axes[0][0].set_ylabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
