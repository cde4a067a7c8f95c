"""The procedural captioned world that the embedded models are trained and judged on."""

from genpipe.scenes.captions import caption, corpus
from genpipe.scenes.colours import COLOURS
from genpipe.scenes.concepts import Concept, concepts, names
from genpipe.scenes.places import SETTINGS
from genpipe.scenes.vocabulary import unknown_words, vocabulary
from genpipe.scenes.world import Placed, Scene, canonical, held_out, sample, sample_batch, vary

__all__ = [
    "COLOURS",
    "SETTINGS",
    "Concept",
    "Placed",
    "Scene",
    "canonical",
    "caption",
    "concepts",
    "corpus",
    "held_out",
    "names",
    "sample",
    "sample_batch",
    "unknown_words",
    "vary",
    "vocabulary",
]
