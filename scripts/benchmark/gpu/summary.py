"""What was measured, as text: the figures that are asked for, then every section's own."""

from collections.abc import Mapping
from typing import Any

LONGEST = 8000  # characters of the summary
# Title, section, key, what it must be, what it should be; a figure with "most" is to be at most that.
WANTED = (
    ("step at 1, ms", "sd15", "step_ms/1", "most", 7.0, 5.5),
    ("step at 16, ms", "sd15", "step_ms/16", "most", 68.0, 55.0),
    ("step at 16 compiled, ms", "compiled", "compile_step_ms/16", "most", 62.0, 55.0),
    ("SD 1.5 render, images/s", "render", "pictures_per_second", "least", 9.0, 13.0),
    ("render over Pipeline alone", "render", "share_of_pipeline", "least", 0.9, 0.97),
    ("SDXL render, images/s", "render_sdxl", "pictures_per_second", "least", 1.5, 2.4),
    ("embedded render, images/s", "embedded", "pictures_per_second", "least", 300.0, 1000.0),
    ("decode of 8 x 512, ms", "sd15", "decode_ms/8", "most", 90.0, 60.0),
    ("first image, cold, s", "sd15", "first_image_s/cold", "most", 20.0, 20.0),
    ("first image, warm, s", "quality", "first_image_s/warm", "most", 3.0, 3.0),
)
# Sections that give them.
ASKED = {section for _, section, *_ in WANTED}


def summary(results: Mapping[str, Any]) -> str:
    """Text of at most `LONGEST` characters."""
    sections: Mapping[str, Any] = results["sections"]
    lines = [" | ".join(f"{key} {_short(value)}" for key, value in sections.get("card", {}).get("figures", {}).items())]
    lines += ["", *_wanted(sections, toy=results["toy"]), ""]
    for name, section in sections.items():
        lines.append(f"{name}: {section['state']}, {section['seconds']:.0f} s")
        if name != "card":
            lines += [f"  {line}" for line in _grouped(section["figures"])]
    text = "\n".join(lines) + "\n"
    return text if len(text) <= LONGEST else text[: LONGEST - 30] + "\n(the rest: results.json)\n"


def failures(results: Mapping[str, Any]) -> str:
    """The tests that failed, with the end of each one's traceback."""
    texts = []
    for name, section in results["sections"].items():
        for key, value in section["figures"].items():
            if key.startswith("failure/"):
                texts.append(f"=== {name}: {key.partition('/')[2]}\n{value}\n")
    return "\n".join(texts)


def _wanted(sections: Mapping[str, Any], *, toy: bool) -> list[str]:
    lines = []
    for title, section, key, bound, must, aim in WANTED:
        value = sections.get(section, {}).get("figures", {}).get(key)
        if not isinstance(value, int | float):
            lines.append(f"{title:<28} -")
            continue
        met = [value <= limit if bound == "most" else value >= limit for limit in (must, aim)]
        verdict = "aim met" if met[1] else "must met" if met[0] else "MISSED"
        wanted = "of tiny networks" if toy else f"must {must:g}, aim {aim:g}: {verdict}"
        lines.append(f"{title:<28} {_short(value):>8}  {wanted}")
    quality = sections.get("quality", {}).get("figures", {})
    ours, theirs = (quality.get(f"psnr_db/{name}") for name in ("default", "diffusers"))
    lines.append(f"{'PSNR against fp32, dB':<28} {_short(ours):>8}  diffusers bf16 {_short(theirs)}")
    return lines


def _grouped(figures: Mapping[str, Any]) -> list[str]:
    """One line for each group of figures; a line for each kernel and each failed test."""
    alone: dict[str, list[str]] = {}
    lines = []
    for key, value in figures.items():
        group, slash, item = key.partition("/")
        if group == "kernel_ms":
            lines.append(f"{value[0]:8.2f} ms {value[1]:6.0f} x  {_ends(item)}")
        elif group == "failure":
            lines.append(f"FAILED {item}: {_reason(value)}")
        else:
            alone.setdefault(group if slash else "", []).append(f"{item if slash else key} {_short(value)}")
    return [f"{group}: {', '.join(items)}" if group else ", ".join(items) for group, items in alone.items()] + lines


def _reason(text: str) -> str:
    """The line of a traceback that pytest marks as the error."""
    marked = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return (marked[0] if marked else text.strip().splitlines()[-1] if text.strip() else "")[:110]


def _ends(name: str) -> str:
    """The ends of a kernel's name: its middle is what templates are filled with."""
    return name if len(name) <= 90 else f"{name[:44]} … {name[-43:]}"


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None or not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.4g}"
