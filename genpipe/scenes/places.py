"""The names of the settings, apart from the painting of them so that captions need no torch."""

LOOK = 6  # how many numbers in [0, 1] vary a setting
SETTINGS: tuple[str, ...] = (
    "sea",
    "beach",
    "underwater",
    "meadow",
    "forest",
    "mountains",
    "desert",
    "snow",
    "sunset",
    "night",
    "space",
    "rain",
    "city",
    "room",
    "table",
    "sky",
    "white",
    "yellow",
    "blue",
    "pink",
    "green",
)
