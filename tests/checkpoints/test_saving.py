"""What is saved is whole, replaces what was there in one move, and is what diffusers opens."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from genpipe.checkpoints import Checkpoint, load_checkpoint, save_checkpoint, saving


@pytest.fixture
def parts(tiny_checkpoint: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(tiny_checkpoint)
    names = ("text_encoders", "unet", "vae", "tokenizers", "scheduler_config")
    return {name: getattr(checkpoint, name) for name in names}


def weights(checkpoint: Checkpoint) -> list[torch.Tensor]:
    return [t for network in checkpoint.networks.values() for t in network.state_dict().values()]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_diffusers_opens_it_and_computes_the_same(tmp_path: Path, parts: dict[str, Any], dtype: torch.dtype) -> None:
    save_checkpoint(tmp_path, **parts, dtype=dtype, defaults={"steps": 5})
    ours = load_checkpoint(tmp_path, dtype=torch.float32)
    theirs: Any = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, dtype=torch.float32)
    assert ours.defaults == {"steps": 5} and type(theirs.scheduler).__name__ == "DDIMScheduler"

    texts = ["a red cat", "a pirate ship at sea " * 9]
    ids = torch.tensor(ours.tokenizers[0](texts).ids)
    settings = {"padding": "max_length", "truncation": True, "max_length": 16, "return_tensors": "pt"}
    assert torch.equal(ids, theirs.tokenizer(texts, **settings).input_ids)
    torch.manual_seed(0)
    latents, pixels = torch.randn(2, 4, 8, 8), torch.rand(2, 3, 32, 32) * 2 - 1
    context = ours.text_encoders[0](ids).context
    time = torch.tensor([7.0, 800.0])
    pairs = {
        "text encoder": (context, theirs.text_encoder(ids)[0]),
        "U-Net": (ours.unet(latents, time, context), theirs.unet(latents, time, context).sample),
        "encoder": (ours.vae.encode(pixels)[0], theirs.vae.encode(pixels).latent_dist.mean),
        "decoder": (ours.vae.decode(latents), theirs.vae.decode(latents / theirs.vae.config.scaling_factor).sample),
    }
    for name, (our, their) in pairs.items():
        assert (our - their).abs().max() <= 1e-5 * max(1.0, float(their.abs().max())), name


def test_a_checkpoint_in_shards_is_opened_by_diffusers_and_by_genpipe(tmp_path: Path, parts: dict[str, Any]) -> None:
    save_checkpoint(tmp_path, **parts, shard_bytes=20_000)
    shards = sorted((tmp_path / "unet").glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].name == f"diffusion_pytorch_model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    largest = max(tensor.nbytes for tensor in parts["unet"].state_dict().values())
    headers = 8 + 200 * len(index["weight_map"])
    assert all(path.stat().st_size <= max(20_000, largest) + headers for path in shards)
    ours, unet = load_checkpoint(tmp_path), parts["unet"]
    assert all(torch.equal(weight, unet.state_dict()[name]) for name, weight in ours.unet.state_dict().items())
    theirs: Any = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    torch.manual_seed(0)
    given = torch.randn(2, 4, 8, 8), torch.tensor([7.0, 800.0]), torch.randn(2, 16, unet.config.context_channels)
    with torch.inference_mode():
        assert torch.allclose(theirs.unet(*given).sample, unet(*given), atol=1e-5)


def test_saving_and_loading_is_the_identity(tmp_path: Path, tiny_checkpoint: Path, parts: dict[str, Any]) -> None:
    save_checkpoint(tmp_path / "new" / "folder", **parts)
    saved, original = load_checkpoint(tmp_path / "new" / "folder"), load_checkpoint(tiny_checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(weights(saved), weights(original), strict=True))
    assert [n.config for n in saved.networks.values()] == [n.config for n in original.networks.values()]
    assert saved.scheduler_config == original.scheduler_config
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert len(modes) == 1  # whoever may read the configs may read the weights


def test_a_checkpoint_that_is_there_is_replaced_even_by_what_was_read_from_it(
    tmp_path: Path, parts: dict[str, Any]
) -> None:
    target = tmp_path / "checkpoint"
    save_checkpoint(target, **parts, defaults={"steps": 1})
    loaded = load_checkpoint(target)
    (target / "leftover").touch()
    save_checkpoint(target, **{**parts, "unet": loaded.unet}, dtype=torch.float16)
    assert load_checkpoint(target).defaults == {} and not (target / "leftover").exists()
    assert {t.dtype for t in weights(load_checkpoint(target))} == {torch.float16}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failed_save_leaves_what_was_there(
    tmp_path: Path, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "checkpoint"
    save_checkpoint(target, **parts, defaults={"steps": 1})

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("save_file", "_replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(saving, name, full)
            save_checkpoint(target, **parts, defaults={"steps": 2})
        assert load_checkpoint(target).defaults == {"steps": 1}
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        original = Path.rename

        def fail_second(path: Path, new: Path) -> Path:
            return full() if ".partial-" in path.name else original(path, new)  # type: ignore[return-value]

        patch.setattr(Path, "rename", fail_second)
        save_checkpoint(target, **parts, defaults={"steps": 2})
    assert load_checkpoint(target).defaults == {"steps": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_mistakes_are_named_and_nothing_is_written(tmp_path: Path, parts: dict[str, Any]) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="holds something other than a checkpoint"):
        save_checkpoint(tmp_path, **parts)
    with pytest.raises(ValueError, match="scheduler_config has no _class_name"):
        save_checkpoint(tmp_path / "new", **{**parts, "scheduler_config": {"beta_start": 1}})
    with torch.no_grad():
        parts["unet"].conv_in.weight[0] = 1e5  # over what fp16 can hold
    with pytest.raises(ValueError, match=r"unet: conv_in.weight is not finite in torch.float16"):
        save_checkpoint(tmp_path / "new", **parts, dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_index_names_every_part(tiny_checkpoint: Path) -> None:
    index = json.loads((tiny_checkpoint / "model_index.json").read_text())
    for part, (library, name) in ((k, v) for k, v in index.items() if isinstance(v, list)):
        assert (tiny_checkpoint / part).is_dir() == (library is not None and name is not None)


def test_one_text_encoder_may_be_given_by_its_former_name(tmp_path: Path, parts: dict[str, Any]) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    save_checkpoint(new, **parts)
    (encoder,), (tokenizer,) = parts.pop("text_encoders"), parts.pop("tokenizers")
    with pytest.warns(DeprecationWarning, match="the old names go in 0.3"):
        save_checkpoint(old, **parts, text_encoder=encoder, tokenizer=tokenizer)
    for path in new.rglob("*.*"):
        assert path.read_bytes() == (old / path.relative_to(new)).read_bytes()
