"""What the processor could do: the operations of the networks, and the best rate measured for each of their shapes."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import PhaseUpsample, Upsample
from genpipe.checkpoints.weights import skeleton
from genpipe.models.attention import Attention, GatedFeedForward
from genpipe.models.cpu.attention import blocked_attention
from genpipe.models.cpu.forms import PLAIN, TABLE
from genpipe.models.cpu.packed import PackedGatedFeedForward, PatchConv, can_pack, pack, suits_patches
from genpipe.models.cpu.winograd import DifferenceUpsample, WinogradConv, suits_difference, suits_winograd
from genpipe.models.cpu.winograd4 import Winograd4Conv, suits_winograd4
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig

# A kind and its numbers: ("linear", rows, in, out), ("convolution", batch, in, out, kernel, stride, height, width),
# ("upsampling", batch, channels, height, width before it), ("attention", batch · heads, queries, keys, head width).
Operation = tuple[Any, ...]
FEWEST = 64  # channels of a `WinogradConv` or `Winograd4Conv` that is measured in fp32, and of a `PatchConv`
# Convolutions of decoders, which have fewer channels than those of a U-Net, and how often they come.
_DECODER: dict[Operation, int] = {
    ("convolution", 1, width, width, 3, 1, side, side): 1 for width, side in ((64, 256), (128, 256), (256, 128))
}


def step_operations(size: int, batch: int, config: UNetConfig | None = None) -> Counter[Operation]:
    """Every product of one guided step of a U-Net, by default Stable Diffusion 1.5's, computed plainly, and how often it
    comes."""
    found: Counter[Operation] = Counter()

    def see(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        x = given[0]
        if isinstance(module, nn.Linear):
            found["linear", x.numel() // x.shape[-1], module.in_features, module.out_features] += 1
        elif isinstance(module, Upsample):
            found["upsampling", *x.shape] += 1
        elif isinstance(module, nn.Conv2d) and module not in upsampled:
            kernel, stride = module.kernel_size[0], module.stride[0]
            found["convolution", len(x), module.in_channels, module.out_channels, kernel, stride, *x.shape[2:]] += 1
        elif isinstance(module, Attention):
            keys = given[1][0].shape[2] if len(given) > 1 and given[1] is not None else x.shape[1]
            found["attention", len(x) * module.heads, x.shape[1], keys, module.head_channels] += 1

    config = config or UNetConfig()
    unet = skeleton(lambda: UNet(config))
    upsampled = {module.conv for module in unet.modules() if isinstance(module, Upsample)}
    for module in unet.modules():
        module.register_forward_hook(see)
    rows, side = 2 * batch, size // 8
    with torch.device("meta"):
        added: dict[str, Tensor] = {}
        if config.added_channels is not None and config.added_time_channels is not None:
            pooled = config.added_channels - 6 * config.added_time_channels
            added = {"pooled": torch.empty(rows, pooled), "time_ids": torch.empty(rows, 6)}
        context = torch.empty(rows, 77, config.context_channels)
        unet(torch.empty(rows, config.in_channels, side, side), torch.empty(rows), context, **added)
    return found


def flops(operation: Operation) -> int:
    """Two for each multiplication and addition."""
    kind, *numbers = operation
    if kind == "linear":
        rows, width, out = numbers
        return 2 * rows * width * out
    if kind == "convolution":
        batch, width, out, kernel, stride, height, across = numbers
        return 2 * batch * (height // stride) * (across // stride) * width * out * kernel**2
    if kind == "upsampling":
        batch, width, height, across = numbers
        return 2 * batch * 2 * height * 2 * across * width**2 * 3**2
    groups, rows, keys, width = numbers
    return 4 * groups * rows * keys * width


def best_seconds(run: Callable[[], Any], *, budget: float = 0.4) -> float:
    """The shortest of a few runs."""
    run()
    best, ends = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < ends or best == float("inf"):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def forms_of(operation: Operation, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every way that there is to compute an operation, by name."""
    kind, *numbers = operation
    if kind == "attention":
        groups, rows, keys, width = numbers
        q, k, v = (torch.randn(1, groups, n, width).to(dtype) * width**-0.25 for n in (rows, keys, keys))
        yield "plain", lambda: F.scaled_dot_product_attention(q, k, v, scale=1.0)
        if dtype == torch.bfloat16 and can_pack(dtype):
            yield "blocked", lambda: blocked_attention(q, k, v)
        return
    if kind == "linear":
        rows, width, out = numbers
        layer, x = nn.Linear(width, out), torch.randn(rows, width)
    elif kind == "upsampling":
        batch, width, height, across = numbers
        x = torch.randn(batch, width, height, across)
        small = x.to(dtype, memory_format=torch.channels_last)
        upsample = Upsample(width)
        phases = PhaseUpsample(upsample)
        if can_pack(dtype) and suits_difference(upsample, PLAIN.differences_from):
            difference = DifferenceUpsample(upsample, dtype, across)
            yield "winograd", lambda: difference(small)
        upsample.conv = pack(upsample.conv.to(dtype)) if can_pack(dtype) else upsample.conv.to(dtype)  # type: ignore[assignment]
        phases.conv = pack(phases.conv.to(dtype)) if can_pack(dtype) else phases.conv.to(dtype)  # type: ignore[assignment]
        yield "plain", lambda: upsample(small)
        yield "phases", lambda: phases(small)
        return
    else:
        batch, width, out, kernel, stride, height, across = numbers
        layer = nn.Conv2d(width, out, kernel, stride=stride, padding=kernel // 2)
        x = torch.randn(batch, width, height, across).contiguous(memory_format=torch.channels_last)
    layer, x = layer.to(dtype), x.to(dtype)
    fewest = FEWEST if dtype == torch.float32 else PLAIN.winograd_from  # rounding counts in 16 bits alone
    if can_pack(dtype) and suits_winograd(layer, x.shape[-1], fewest):
        fast = WinogradConv(cast(nn.Conv2d, layer), dtype, x.shape[-1])
        yield "winograd", lambda: fast(x)
    large = x.shape[-1] >= PLAIN.winograd4_side
    if dtype == torch.float32 and large and suits_winograd4(layer, x.shape[-1], FEWEST):
        tiled = Winograd4Conv(cast(nn.Conv2d, layer))
        yield "winograd4", lambda: tiled(x)
    if can_pack(dtype) and suits_patches(layer, FEWEST):
        patched = PatchConv(cast(nn.Conv2d, layer))
        yield "patches", lambda: patched(x)
    if kind == "convolution":
        layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    yield "plain", lambda: layer(x)
    if can_pack(dtype):
        packed = pack(layer)
        yield "packed", lambda: packed(x)


@torch.inference_mode()
def ceiling(size: int, batch: int, dtype: torch.dtype, config: UNetConfig | None = None) -> dict[str, Any]:
    """The seconds that a guided step would take if each product ran at the best rate measured for its shape."""
    kinds: dict[str, dict[str, float]] = {}
    for operation, count in step_operations(size, batch, config).items():
        row = kinds.setdefault(operation[0], {"flops": 0.0, "seconds": 0.0})
        row["flops"] += count * flops(operation)
        row["seconds"] += count * min(best_seconds(run, budget=0.15) for _, run in forms_of(operation, dtype))
    total = {key: sum(row[key] for row in kinds.values()) for key in ("flops", "seconds")}
    rates = {kind: row["flops"] / row["seconds"] / 1e9 for kind, row in (kinds | {"all": total}).items()}
    return {"flops": total["flops"], "seconds": total["seconds"], "gflops_per_second": rates}


@torch.inference_mode()
def gemm_rate(dtype: torch.dtype, device: str, side: int = 8192) -> float:
    """FLOP/s of one large square product: the most that a GPU gives in practice, whatever the shape."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()

    return flops(("linear", side, side, side)) / best_seconds(product)


def step_flops(size: int, batch: int) -> int:
    """Those of one guided step of Stable Diffusion 1.5."""
    return sum(count * flops(operation) for operation, count in step_operations(size, batch).items())


@torch.inference_mode()
def tune(instruction_set: str, dtypes: list[torch.dtype], processor: str) -> dict[str, Any]:
    """Measure the forms on the shapes of Stable Diffusion 1.5, and write what won into the table that ships."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    for dtype in dtypes:
        spent: dict[str, Counter[str]] = {}
        # Seconds that these forms save, by the fewest channels; and `DifferenceUpsample` with the first.
        saved2: Counter[int] = Counter()  # `WinogradConv`
        saved4: Counter[int] = Counter()  # `Winograd4Conv`
        saved_patches: Counter[int] = Counter()  # `PatchConv`, where neither of the two can be
        faster = 0.0
        for operation, count in {**step_operations(512, 1), **_DECODER}.items():
            kind = operation[0] if operation[0] != "convolution" else f"convolution {operation[4]}x{operation[4]}"
            if kind == "attention":
                continue
            times = {form: count * best_seconds(run, budget=0.15) for form, run in forms_of(operation, dtype)}
            fast4, fast2, patches = (times.pop(form, None) for form in ("winograd4", "winograd", "patches"))
            if fast4 is None and fast2 is None and patches is not None:
                saved_patches[min(operation[2:4])] += min(times.values()) - patches  # type: ignore[assignment]
            if fast4 is not None:
                saved4[min(operation[2:4])] += min(times.values()) - fast4  # type: ignore[assignment]
            elif fast2 is not None:
                faster += min(times.values()) - fast2
                if kind != "upsampling":
                    saved2[min(operation[2:4])] += min(times.values()) - fast2  # type: ignore[assignment]
            spent.setdefault(kind, Counter()).update(times)  # type: ignore[arg-type]
        packed = [kind for kind in spent if spent[kind].get("packed", float("inf")) < spent[kind]["plain"]]
        phases = spent["upsampling"]["phases"] < spent["upsampling"]["plain"]
        blocked = {}
        for width in (64, 128, 512):
            for keys in (4096, 2048, 1024, 512, 256) if dtype == torch.bfloat16 else ():
                times = {
                    form: best_seconds(run)
                    for form, run in forms_of(("attention", 16 if width < 512 else 1, keys, keys, width), dtype)
                }
                if times.get("blocked", float("inf")) >= times["plain"]:
                    break
                blocked[str(width)] = keys
        row = {"packed": [*packed, *(["upsampling"] if phases and can_pack(dtype) else [])], "phases": phases}
        row |= {
            "winograd": faster > 0,
            "winograd4": _fewest(saved4),
            "patches": _fewest(saved_patches),
            "blocked": blocked,
            "measured": processor,
        }
        if dtype == torch.float32 and can_pack(dtype):
            row["fused_gelu"] = _fused_gelu()
        if dtype == torch.float32 and (least := _fewest(saved2)) is not None:
            row["winograd_from"] = least
        table.setdefault(instruction_set, {})[str(dtype).removeprefix("torch.")] = row
    TABLE.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return table[instruction_set]


def _fused_gelu() -> bool:
    """Whether GELU inside a product takes less than after it, in fp32."""
    layer, x = GatedFeedForward(320), torch.randn(8192, 320)
    forms = {fused: PackedGatedFeedForward(layer, fused=fused) for fused in (True, False)}
    times = {fused: best_seconds(lambda form=form: form(x)) for fused, form in forms.items()}
    return times[True] <= times[False]


def _fewest(saved: Mapping[int, float]) -> int | None:
    """Give the fewest channels from which on a form saves time for all of as many or more; None where it never does."""
    slower = max((channels for channels, seconds in saved.items() if seconds <= 0), default=0)
    return min((channels for channels in saved if channels > slower), default=None)
