"""Commands, the server, fingerprints and lists treat a pipeline of diffusers as any other model."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.checkpoints.describe import describe_path, summary
from genpipe.checkpoints.fingerprint import checkpoint_files, fingerprint
from genpipe.cli import main
from genpipe.judge import Score
from genpipe.metadata import read_made
from genpipe.pipeline import Pipeline, generate
from genpipe.server.batches import Batches
from genpipe.server.jobs import Drawn, Job, News, Stepped
from genpipe.server.sizes import Sizes
from genpipe.workers.described import describe
from genpipe.workers.settings import complete
from tests.adapters.conftest import family_named
from tests.adapters.tiny import Family

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
Load = Callable[[Family], Pipeline]
Save = Callable[[Family], Path]
FLUX = "FLUX.1 dev"


@pytest.fixture
def folder(folder_of: Save) -> Path:
    return folder_of(family_named(FLUX))


@pytest.fixture
def flux(loaded: Load) -> Pipeline:
    return loaded(family_named(FLUX))


def test_the_command_draws_shows_and_draws_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    options = ["-m", str(folder), "--device", "cpu", "--dtype", "fp32", "--quiet"]
    arguments = ["--argument", "true_cfg_scale=2", "--argument", "max_sequence_length=32", "-N", "blue"]
    assert (
        main(["a red cat", "-s", "3", "--steps", "2", "--size", "32x32", *arguments, *options, "-o", str(first)]) == 0
    )
    assert dict(read_made(first).request["arguments"]) == {"max_sequence_length": 32, "true_cfg_scale": 2}
    assert main(["--from-image", str(first), "--device", "cpu", "--quiet", "-o", str(again)]) == 0
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))
    capsys.readouterr()
    assert main(["show", str(first)]) == 0
    assert "true_cfg_scale" in capsys.readouterr().out


def test_generate_draws_with_it(folder: Path, flux: Pipeline):
    settings = family_named(FLUX).settings
    image = generate("a red cat", model=folder, device="cpu", dtype="fp32", seed=3, progress=False, **settings)
    expected = flux("a red cat", seed=3, progress=False, **settings)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_lists_and_descriptions_name_its_class(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert summary(folder) == "a folder of FluxPipeline, drawn by diffusers"
    said = describe_path(folder)
    assert said["is"].startswith("a folder of FluxPipeline") and "transformer (FluxTransformer2DModel)" in said["parts"]
    assert "fp32; " in said["weights"]
    assert main(["models", "--model-dir", str(folder.parent)]) == 0
    assert "FluxPipeline, drawn by diffusers" in capsys.readouterr().out


def test_its_fingerprint_is_of_all_its_parts_wherever_they_lie(folder: Path, tmp_path: Path):
    cache = tmp_path / "hashes.json"
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    before = fingerprint(checkpoint_files(folder, None), cache)
    assert fingerprint(checkpoint_files(copied, None), cache) == before
    for part in ("transformer/config.json", "text_encoder_2/config.json", "tokenizer_2/tokenizer.json"):
        text = (copied / part).read_text()
        (copied / part).write_text(text + " ")
        assert fingerprint(checkpoint_files(copied, None), cache) != before, part
        (copied / part).write_text(text)


def test_what_it_says_of_itself_completes_a_row(flux: Pipeline):
    model = describe(flux)
    request = complete({"prompt": "a red cat", "arguments": {"true_cfg_scale": 2}}, model)
    assert (request.steps, request.guidance_scale, request.height) == (28, 3.5, 256)  # those of FluxPipeline.__call__
    assert request.prompt_syntax == "plain" and request.arguments == (("true_cfg_scale", 2),)
    with pytest.raises(ValueError, match="sampler is not for this model"):
        complete({"prompt": "a red cat", "sampler": "ddim"}, model)


def test_the_server_draws_one_image_of_it_after_the_other(flux: Pipeline):
    batches, settings = Batches({"flux": flux}, Sizes({"flux": flux})), family_named(FLUX).settings
    jobs = []
    for seed in (1, 2, 3):
        (request,) = flux.requests("a red cat", seed=seed, **settings)
        jobs.append(Job(str(seed), request, "flux", "", previews=True))
    assert [batches.add(job) for job in jobs] == [[], [], []]
    news: list[News] = []
    batches.tick()
    batches.cancel("2")
    while len(batches):
        news += batches.tick()[0]
    assert all(one.preview for one in news if isinstance(one, Stepped))
    drawn = {one.id: one for one in news if isinstance(one, Drawn)}
    assert set(drawn) == {"1", "3"}
    for identifier, one in drawn.items():
        expected = flux("a red cat", seed=int(identifier), progress=False, **settings)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(one.data))), np.asarray(expected))


def test_the_best_of_several_is_kept(flux: Pipeline):
    class Brightness:
        def check_prompt(self, prompt: str) -> None: ...

        def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
            return [Score(prompt, float(np.asarray(x).mean())) for x, prompt in zip(images, prompts, strict=True)]

    settings = family_named(FLUX).settings
    image = flux("a red cat", seed=3, best_of=3, judge=Brightness(), progress=False, **settings)
    all_of_them = flux(["a red cat"] * 3, seeds=[3, 4, 5], progress=False, **settings)
    assert np.asarray(image).mean() == max(np.asarray(each).mean() for each in all_of_them)


def test_previews_have_the_colours_of_the_image(flux: Pipeline):
    states = []
    image = flux("a red cat", seed=3, progress=False, callback=states.append, **family_named(FLUX).settings)
    (preview,) = flux.preview(torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0)[None])
    assert preview.size == (4, 4)
    (early,) = states[0].preview()
    assert early.size == (16, 16) and np.asarray(early).std() > 5


def test_a_model_says_how_it_likes_to_be_run(folder: Path, tmp_path: Path):
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    (copied / "genpipe.json").write_text(json.dumps({"steps": 4, "guidance_scale": 0.0, "height": 64}))
    pipeline = Pipeline.from_pretrained(copied, device="cpu", dtype="fp32")
    usual = pipeline.defaults()
    assert (usual["steps"], usual["guidance_scale"], usual["height"], usual["width"]) == (4, 0.0, 64, 256)
