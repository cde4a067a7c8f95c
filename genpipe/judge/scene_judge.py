"""The judge of genpipe's own world: a network that has seen only drawn scenes says what an image shows."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from genpipe.embedded import learned_concepts
from genpipe.hardware import choose_device
from genpipe.judge.scores import BATCH, Check, Score
from genpipe.messages import quoted
from genpipe.scenes.colours import COLOURS
from genpipe.scenes.concepts import names
from genpipe.scenes.normalise import normalise
from genpipe.scenes.parse import WantedObject, WantedScene, parse
from genpipe.scenes.places import SETTINGS
from genpipe.vision.scene_model import INPUT_SIDE, PREPROCESS, FoundObjects, SceneModel, find_objects, load_scene_model
from genpipe.vision.weights import write_tensors

SURE = 0.5  # objectness from which on something is there
FAINT = 0.05  # objectness from which on something may be there
LEAST = 1e-3  # probability of a check: one thing that is missing must not hide how near the others are
SOFTNESS = 0.05  # of the image's side: how far apart two things have to be to be surely left and right


@dataclass(frozen=True)
class Observation:
    """What the scene model sees in one image."""

    objects: FoundObjects  # the surest first, faint ones included
    settings: Tensor  # (settings,) probabilities
    features: Tensor  # (CHANNELS,) of the whole image


class Judge:
    """A scene model with the names of what it knows.

    Args:
        model: on any device; it is put into evaluation mode.
        concepts, colours, settings: what its outputs stand for; by default all of genpipe's world.
    """

    def __init__(
        self,
        model: SceneModel,
        *,
        concepts: Sequence[str] | None = None,
        colours: Sequence[str] = tuple(COLOURS),
        settings: Sequence[str] = SETTINGS,
    ) -> None:
        self.model = model.eval()
        self.concepts = names() if concepts is None else tuple(concepts)
        self.colours, self.settings = tuple(colours), tuple(settings)

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device | None = None) -> "Judge":
        """Load the judge in a file that `save` wrote, in fp32.

        Raises:
            ValueError: the file is damaged or holds something else.
            OSError: there is no such file.
        """
        model, known = load_scene_model(path)
        return cls(model.to(choose_device(device)), **known)

    def save(self, path: str | Path) -> None:
        """Write the judge in fp16 to a .safetensors file, wholly or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        metadata = {
            "trunk": self.model.architecture,
            "width": str(self.model.width),
            "concepts": json.dumps(self.concepts),
            "colours": json.dumps(self.colours),
            "settings": json.dumps(self.settings),
            "preprocess": json.dumps(PREPROCESS.to_dict()),
        }
        write_tensors(path, self.model.state_dict(), metadata, dtype=torch.float16)

    @torch.inference_mode()
    def observe(self, images: Sequence[Image.Image]) -> list[Observation]:
        """Return what the model sees in each image."""
        device = next(self.model.parameters()).device
        observed = []
        for start in range(0, len(images), BATCH):
            pixels = torch.stack([PREPROCESS(image) for image in images[start : start + BATCH]])
            seen = self.model(pixels.to(device, memory_format=torch.channels_last))
            found = find_objects(self.model, seen, threshold=FAINT)
            settings = seen.settings.float().softmax(dim=1)
            observed += [Observation(*of_one) for of_one in zip(found, settings, seen.features, strict=True)]
        return observed

    def check_prompt(self, prompt: str) -> None:
        """See `Scorer`."""
        wanted_scene = read(prompt)
        known = all(wanted.concept in self.concepts for wanted in wanted_scene.objects)
        if not known or (not wanted_scene.objects and wanted_scene.setting is None):
            raise ValueError(
                f"prompt {quoted(prompt)} names nothing of the embedded world, so its judge cannot tell whether an "
                "image shows it: give a CLIP model as judge"
            )

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
        """Return one score for each image and its prompt.

        Raises:
            ValueError: a prompt that names nothing of the world.
        """
        for prompt in dict.fromkeys(prompts):
            self.check_prompt(prompt)
        observed = self.observe(images)
        return [
            self.compare(observation, prompt, read(prompt))
            for observation, prompt in zip(observed, prompts, strict=True)
        ]

    def compare(self, observation: Observation, prompt: str, wanted_scene: WantedScene) -> Score:
        """Score what was seen by what is asked for."""
        checks: list[Check] = []
        chosen = self._assign(observation.objects, wanted_scene.objects)
        for wanted, index in zip(wanted_scene.objects, chosen, strict=True):
            checks += self._check_object(observation.objects, wanted, index)
        if len(wanted_scene.objects) == 1 and (count := wanted_scene.objects[0].count) is not None:
            checks[0] = self._check_all(observation.objects, wanted_scene.objects[0].concept, count)
            checks.append(_check_count(observation.objects.scores, count))
        if wanted_scene.relation is not None and len(set(chosen[:2])) == 2:
            checks.append(
                _check_relation(
                    observation.objects.boxes[chosen[0]], observation.objects.boxes[chosen[1]], wanted_scene.relation
                )
            )
        elif wanted_scene.relation is not None:
            checks.append(Check("relation", wanted_scene.relation, "one object", 0.0, False))
        if wanted_scene.setting is not None:
            best = self.settings[int(observation.settings.argmax())]
            chance = float(observation.settings[self.settings.index(wanted_scene.setting)])
            checks.append(Check("setting", wanted_scene.setting, best, chance, best == wanted_scene.setting))
        mean = sum(math.log(max(check.probability, LEAST)) for check in checks) / max(1, len(checks))
        return Score(prompt, math.exp(mean), tuple(checks))

    def _assign(self, objects: FoundObjects, wanted: Sequence[WantedObject]) -> list[int]:
        """Which object stands for which wanted thing: the likeliest first, each only once unless there are too few."""
        columns = [self.concepts.index(thing.concept) for thing in wanted]
        chances = objects.concepts[:, columns] * objects.scores[:, None]  # (K, wanted)
        enough, chosen = len(chances) >= len(wanted), [0] * len(wanted)
        for _ in wanted:
            row, column = divmod(int(chances.argmax()), len(wanted))
            chosen[column] = row
            chances[:, column] = -1
            if enough:
                chances[row] = -1
        return chosen

    def _check_all(self, objects: FoundObjects, concept: str, count: int) -> Check:
        """Whether the `count` surest objects are the wanted thing, every one."""
        chances, there = objects.concepts[:count], objects.scores[:count]
        found = dict.fromkeys(self.concepts[i] for i in chances[there >= SURE].argmax(dim=1).tolist())
        chance = float((chances[:, self.concepts.index(concept)] * there).mean())
        return Check("object", concept, ", ".join(found) or "nothing", chance, list(found) == [concept])

    def _check_object(self, objects: FoundObjects, wanted: WantedObject, index: int) -> list[Check]:
        there = float(objects.scores[index])
        chances = objects.concepts[index]
        best = self.concepts[int(chances.argmax())]
        chance = float(chances[self.concepts.index(wanted.concept)]) * there
        right = best == wanted.concept and there >= SURE
        checks = [Check("object", wanted.concept, best if there >= SURE else "nothing", chance, right)]
        if wanted.colour is not None:
            # A natural colour may be the one that was asked for: a red apple.
            tints = objects.colours[index, :-1] / objects.colours[index, :-1].sum().clamp(min=1e-9)
            best = self.colours[int(tints.argmax())]
            checks.append(
                Check(
                    "colour",
                    wanted.colour,
                    best,
                    float(tints[self.colours.index(wanted.colour)]),
                    best == wanted.colour,
                )
            )
        return checks


def read(prompt: str) -> WantedScene:
    """Return what a prompt asks for, with capitals, emoji and slips read as the embedded model reads them."""
    return parse(normalise(prompt, learned_concepts()).text)


def _check_count(scores: Tensor, wanted: int) -> Check:
    """Whether there are so many things, each being there with its own probability (a Poisson binomial)."""
    chances = [1.0]
    for there in scores.tolist():
        chances = [a * (1 - there) + b * there for a, b in zip([*chances, 0.0], [0.0, *chances], strict=True)]
    found = int((scores >= SURE).sum())
    return Check("count", str(wanted), str(found), chances[wanted] if wanted < len(chances) else 0.0, found == wanted)


def _check_relation(first: Tensor, second: Tensor, relation: str) -> Check:
    """Whether the first box is left of, right of, above or below the second."""
    (x, y), (other_x, other_y) = (((box[:2] + box[2:]) / (2 * INPUT_SIDE)).tolist() for box in (first, second))
    away = {"left": other_x - x, "right": x - other_x, "above": other_y - y, "below": y - other_y}
    found = max(away, key=lambda name: away[name])
    return Check("relation", relation, found, 1 / (1 + math.exp(-away[relation] / SOFTNESS)), found == relation)
