"""The names of the settings and of what varies in them, apart from the painting so that captions need no torch."""

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
PLAIN = ("white", "yellow", "blue", "pink", "green")
OUTDOORS = ("sea", "beach", "meadow", "forest", "mountains", "desert", "snow", "city", "sky")  # in the light of the day
LIGHTS = ("day", "sunny", "morning", "evening", "night", "grey")
FAR = 3  # what is to be seen far away: nothing, or one of two things that each setting has
KINDRED: dict[str, tuple[str, ...]] = {  # where a thing may be as well, of which nothing is said
    "sea": ("sunset",),
    "beach": ("meadow", "sunset"),
    "underwater": ("yellow",),
    "meadow": ("forest", "mountains", "beach"),
    "forest": ("meadow", "mountains", "snow"),
    "mountains": ("forest", "desert", "snow"),
    "desert": ("beach", "mountains"),
    "snow": ("forest", "mountains"),
    "sunset": ("beach", "sky"),
    "night": ("forest", "city"),
    "space": ("night", "sky"),
    "rain": ("city", "meadow"),
    "city": ("rain", "meadow"),
    "room": ("city", "yellow"),
    "table": ("room", "white", "green"),
    "sky": ("mountains", "sunset"),
    **{plain: ("table", *(other for other in PLAIN if other != plain)) for plain in PLAIN},
}
