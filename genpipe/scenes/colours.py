"""The colours that an object can be tinted in."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.13, 0.14),
    "orange": (0.97, 0.53, 0.10),
    "yellow": (0.98, 0.83, 0.14),
    "green": (0.20, 0.66, 0.25),
    "turquoise": (0.14, 0.75, 0.72),
    "blue": (0.16, 0.40, 0.90),
    "purple": (0.55, 0.24, 0.76),
    "pink": (0.97, 0.48, 0.70),
    "brown": (0.50, 0.30, 0.16),
    "black": (0.13, 0.13, 0.15),
    "white": (0.93, 0.93, 0.94),
    "gray": (0.55, 0.56, 0.58),
}
