"""LoRA files of every format, of random weights, with the plain formula of what each changes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genpipe.checkpoints import Checkpoint, layout, ldm_layout

Delta = Callable[[Tensor], Tensor]


@dataclass
class Target:
    """A weight to change.

    Attributes:
        name: ours in full, "unet.conv_in.weight".
        part: "unet", "text_encoder" or "text_encoder_2".
        path: diffusers' of its module.
        compvis: that of single files, of a U-Net's.
        weight: as it is.
    """

    name: str
    part: str
    path: str
    compvis: str
    weight: Tensor


class File:
    """A LoRA file in the making: its tensors, its metadata, and what each weight becomes."""

    def __init__(self, seed: int = 0) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.metadata: dict[str, str] = {}
        self.expected: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator) * 0.3

    def low_rank(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Factors of a change of a weight: down (r, in, …), up (out, r, …)."""
        ones = [1] * (weight.ndim - 2)
        return self.random(rank, *weight.shape[1:]), self.random(len(weight), rank, *ones)


def targets(checkpoint: Checkpoint) -> Iterator[Target]:
    """Some of each kind of layer in the U-Net, and two in each text encoder."""
    compvis = ldm_layout.unet(checkpoint.unet.config, prefix="")
    for part, network in checkpoint.networks.items():
        if part == "vae":
            continue
        table = layout.UNET if part == "unet" else layout.text_encoder(part)
        for key, weight in network.state_dict().items():
            path = table.theirs(key)
            chosen = ("to_q", "to_out.0", "ff.net.2", "proj_in", "conv1", "time_emb_proj", "downsamplers.0.conv")
            chosen = (*chosen, "self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")
            module = path.removesuffix(".weight")
            if path.endswith(".weight") and module.endswith(chosen):
                other = compvis.theirs(key).removesuffix(".weight") if part == "unet" else ""
                yield Target(f"{part}.{key}", part, module, other, weight)


def product(up: Tensor, down: Tensor, shape: torch.Size) -> Tensor:
    """B @ A in a weight's shape, element by element over the rank."""
    total = torch.zeros(shape)
    for index in range(len(down)):
        column, row = up[:, index].reshape(-1, *[1] * (len(shape) - 1)), down[index : index + 1].reshape(1, *shape[1:])
        total += column * row
    return total


KOHYA_TEXT = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def kohya_name(target: Target, checkpoint: Checkpoint, *, compvis: bool = False) -> str:
    if target.part == "unet":
        prefix, path = "lora_unet", target.compvis if compvis else target.path
    else:
        prefix, path = ("lora_te" if len(checkpoint.text_encoders) == 1 else KOHYA_TEXT[target.part]), target.path
    return f"{prefix}_{path.replace('.', '_')}"


def kohya(checkpoint: Checkpoint, *, compvis: bool = False, mixed: bool = True) -> File:
    file = File()
    for index, target in enumerate(targets(checkpoint)):
        rank, alpha = 2 + index % 3, 1.0 + index % 2 if mixed else 1.5
        down, up = file.low_rank(target.weight, rank)
        name = kohya_name(target, checkpoint, compvis=compvis)
        file.tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        file.tensors[f"{name}.alpha"] = torch.tensor(alpha)
        file.expected[target.name] = target.weight + alpha / rank * product(up, down, target.weight.shape)
    return file


def dotted(
    checkpoint: Checkpoint,
    down_end: str,
    up_end: str,
    *,
    rename: Callable[[Target], str] = lambda target: f"{target.part}.{target.path}",
    text: tuple[str, str] | None = None,
    only: Callable[[Target], bool] = lambda target: True,
    rank: int = 3,
) -> File:
    """Files whose names are paths with dots."""
    file = File()
    for target in filter(only, targets(checkpoint)):
        down, up = file.low_rank(target.weight, rank)
        ends = (down_end, up_end) if target.part == "unet" or text is None else text
        file.tensors |= {rename(target) + ends[0]: down, rename(target) + ends[1]: up}
        file.expected[target.name] = target.weight + product(up, down, target.weight.shape)
    return file


def processor(target: Target) -> str:
    """As diffusers had it before 0.18: the layers of attention inside of its processor, `to_out` without its number."""
    path = target.path
    for old in ("to_q", "to_k", "to_v"):
        path = path.replace(f".{old}", f".processor.{old}")
    return f"{target.part}.{path.replace('.to_out.0', '.processor.to_out')}"


def is_attention(target: Target) -> bool:
    return ".attn" in target.path


def locon(checkpoint: Checkpoint) -> File:
    """Convolutions around a smaller one of their own."""
    file, rank = File(), 3
    for target in targets(checkpoint):
        if target.weight.ndim != 4 or target.weight.shape[-1] != 3:
            continue
        out, inner = target.weight.shape[:2]
        up, down, mid = file.random(out, rank, 1, 1), file.random(rank, inner, 1, 1), file.random(rank, rank, 3, 3)
        name = kohya_name(target, checkpoint)
        file.tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.lora_mid.weight": mid}
        file.tensors[f"{name}.alpha"] = torch.tensor(1.5)
        delta = torch.zeros(target.weight.shape)
        for a in range(rank):
            for b in range(rank):
                delta += up[:, a].reshape(-1, 1, 1, 1) * down[b].reshape(1, -1, 1, 1) * mid[a, b]
        file.expected[target.name] = target.weight + 1.5 / rank * delta
    return file


def loha(checkpoint: Checkpoint, *, tucker: bool = False) -> File:
    file, rank = File(), 2
    for target in targets(checkpoint):
        shape, name = target.weight.shape, kohya_name(target, checkpoint)
        out, inner = shape[0], target.weight[0].numel()
        deltas = []
        conv = tucker and len(shape) == 4 and shape[-1] == 3
        for number in (1, 2):
            if conv:
                core, a, b = file.random(rank, rank, 3, 3), file.random(rank, out), file.random(rank, shape[1])
                file.tensors[f"{name}.hada_t{number}"] = core
                pairs = [(i, j) for i in range(rank) for j in range(rank)]
                deltas.append(sum(a[i].reshape(-1, 1, 1, 1) * b[j].reshape(1, -1, 1, 1) * core[i, j] for i, j in pairs))
            else:
                a, b = file.random(out, rank), file.random(rank, inner)
                deltas.append((a @ b).reshape(shape))
            file.tensors |= {f"{name}.hada_w{number}_a": a, f"{name}.hada_w{number}_b": b}
        file.tensors[f"{name}.alpha"] = torch.tensor(1.0)
        file.expected[target.name] = target.weight + 1.0 / rank * (deltas[0] * deltas[1])
    return file


def lokr(checkpoint: Checkpoint, *, factored: bool) -> File:
    file, rank = File(), 2
    for target in targets(checkpoint):
        shape, name = target.weight.shape, kohya_name(target, checkpoint)
        out, inner, kernel = shape[0], shape[1], shape[2:]
        first = file.random(2, 4)
        file.tensors |= {f"{name}.lokr_w1": first, f"{name}.alpha": torch.tensor(5.0)}
        if factored:
            a, b = file.random(out // 2, rank), file.random(rank, inner // 4 * kernel.numel())
            file.tensors |= {f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b}
            second, scale = (a @ b).reshape(out // 2, inner // 4, *kernel), 5.0 / rank
        else:
            second, scale = file.random(out // 2, inner // 4, *kernel), 1.0  # whatever alpha says
            file.tensors[f"{name}.lokr_w2"] = second
        blocks = [torch.cat([first[i, j] * second for j in range(4)], dim=1) for i in range(2)]
        file.expected[target.name] = target.weight + scale * torch.cat(blocks)
    return file


def dora(checkpoint: Checkpoint, *, columns: bool = False) -> File:
    file, rank = File(), 3
    for target in targets(checkpoint):
        down, up = file.low_rank(target.weight, rank)
        name, weight = kohya_name(target, checkpoint), target.weight
        directed = weight + 2.0 / rank * product(up, down, weight.shape)
        axes = [axis for axis in range(weight.ndim) if axis != int(columns)]
        size = weight.square().sum(axes, keepdim=True).sqrt() * (1 + file.random(1).abs())
        file.tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": size}
        file.tensors[f"{name}.alpha"] = torch.tensor(2.0)
        file.expected[target.name] = directed * size / directed.square().sum(axes, keepdim=True).sqrt()
    return file


def dora_of_peft(checkpoint: Checkpoint) -> File:
    file, rank = File(), 3
    for target in targets(checkpoint):
        if target.weight.ndim != 2 or target.part != "unet":
            continue
        down, up = file.low_rank(target.weight, rank)
        size = target.weight.norm(dim=1) * (1 + file.random(1).abs())
        name = f"unet.{target.path}"
        file.tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        file.tensors[f"{name}.lora_magnitude_vector"] = size
        directed = target.weight + product(up, down, target.weight.shape)
        file.expected[target.name] = directed * (size / directed.norm(dim=1))[:, None]
    return file


def differences(checkpoint: Checkpoint) -> File:
    """Full differences of weights, of biases, and of norms."""
    file = File()
    for target in targets(checkpoint):
        name, own = kohya_name(target, checkpoint), file.random(*target.weight.shape)
        file.tensors[f"{name}.diff"] = own
        file.expected[target.name] = target.weight + own
        bias = target.name.replace(".weight", ".bias")
        part, _, key = bias.partition(".")
        state = checkpoint.networks[part].state_dict()
        if key in state:
            file.tensors[f"{name}.diff_b"] = file.random(*state[key].shape)
            file.expected[bias] = state[key] + file.tensors[f"{name}.diff_b"]
    norm = checkpoint.unet.get_parameter("norm_out.weight")
    file.tensors["lora_unet_conv_norm_out.w_norm"] = file.random(*norm.shape)
    file.expected["unet.norm_out.weight"] = norm + file.tensors["lora_unet_conv_norm_out.w_norm"]
    return file


@dataclass
class Format:
    """A format: how its files are made, and whether diffusers reads them."""

    make: Callable[[Checkpoint], File]
    reference: bool = False


FORMATS: dict[str, Format] = {
    # diffusers 0.42 with PEFT 0.21 leaves aside, with a warning, each alpha that is not the commonest.
    "kohya": Format(lambda c: kohya(c, mixed=False), reference=True),
    "kohya with alphas of each module": Format(kohya),
    "kohya by the names of single files": Format(lambda c: kohya(c, compvis=True)),
    "PEFT": Format(lambda c: dotted(c, ".lora_A.weight", ".lora_B.weight"), reference=True),
    "raw PEFT": Format(
        lambda c: dotted(
            c,
            ".lora_A.weight",
            ".lora_B.weight",
            rename=lambda t: f"base_model.model.{t.path}",
            only=lambda t: t.part == "unet",
        )
    ),
    "diffusers of 2023": Format(
        lambda c: dotted(
            c,
            ".lora.down.weight",
            ".lora.up.weight",
            text=(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        ),
        reference=True,
    ),
    "diffusers' processors": Format(
        lambda c: dotted(c, "_lora.down.weight", "_lora.up.weight", rename=processor, only=is_attention), reference=True
    ),
    "LoCon": Format(locon),
    "LoHa": Format(loha),
    "LoHa of convolutions": Format(lambda c: loha(c, tucker=True)),
    "LoKr": Format(lambda c: lokr(c, factored=False)),
    "LoKr of factors": Format(lambda c: lokr(c, factored=True)),
    "DoRA": Format(dora),
    "DoRA by columns": Format(lambda c: dora(c, columns=True)),
    "DoRA of PEFT": Format(dora_of_peft, reference=True),
    "differences": Format(differences),
}
