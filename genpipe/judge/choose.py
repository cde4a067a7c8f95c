"""Which judge: the one that ships, or a CLIP model.

score(image, "two red cats in the snow").total
"""

from functools import lru_cache
from pathlib import Path

from PIL import Image

from genpipe.embedded import JUDGES
from genpipe.judge.scene_judge import Judge
from genpipe.judge.scores import Score, Scorer
from genpipe.vision.pictures import read_picture


@lru_cache(maxsize=1)
def choose_judge(name: str | Path | None = None) -> Scorer:
    """The embedded judge for None, else the CLIP model of this folder or hub id; the last one stays loaded.

    Raises:
        ValueError: it is not a CLIP model that can be loaded.
    """
    if name is None:
        return Judge.load(JUDGES / "model.safetensors")
    from genpipe.judge.clip import ClipJudge

    return ClipJudge.from_pretrained(name)


def score(image: str | Path | Image.Image, prompt: str, *, judge: str | Path | Scorer | None = None) -> Score:
    """Whether a picture shows what `prompt` asks for.

    Args:
        image: a file or a PIL picture; what is not square is judged by the square in its middle.
        judge: None is the embedded judge, which knows genpipe's world; else a CLIP model, a folder or a hub id, or a
            judge that was loaded before.

    Raises:
        ValueError: not a picture, a prompt that the judge cannot judge, or a judge that cannot be loaded.
        OSError: a file cannot be read.
    """
    scorer = choose_judge(judge) if judge is None or isinstance(judge, str | Path) else judge
    scorer.check_prompt(prompt)
    return scorer.scores([read_picture(image)], [prompt])[0]
