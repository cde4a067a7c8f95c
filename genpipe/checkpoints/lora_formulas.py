"""What a LoRA or one of its kin makes of a weight W, from the tensors of its file: the formulas, in fp32.

LoRA: arXiv 2106.09685, eq. 3; LoCon, LoHa and LoKr: arXiv 2309.14859; DoRA: arXiv 2402.09353, eq. 5. In the papers' symbols
`down` is A, `up` is B, and the change is s * (alpha / r) * B @ A with the rank r and the strength s.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# The tensors of one module, or their shapes, by what they are (see `lora_names`).
Tensors = Mapping[str, Tensor]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def form_of(kinds: Shapes) -> str:
    """Which formula the tensors of a module are for: "lora", "loha", "lokr", "diff".

    Raises:
        ValueError: they are those of none, or of more than one, or not all of them.
    """
    forms = {
        "lora": ({"down", "up"}, {"mid"}),
        "loha": ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"hada_t1", "hada_t2"}),
        "lokr": (set(), {kind for kind in kinds if kind.startswith("lokr_")}),
        "diff": (set(), {"diff", "diff_b"}),
    }
    given = set(kinds) - {"alpha", "dora", "magnitude"}
    for name, (needed, more) in forms.items():
        if given and needed <= given <= needed | more:
            return name
    raise ValueError(f"the tensors {', '.join(sorted(kinds))} do not go together")


def rank_of(form: str, shapes: Shapes) -> int | None:
    """The rank r by which alpha is divided; None where alpha has no say."""
    if form == "lora":
        return shapes["down"][0]
    if form == "loha":
        return shapes["hada_w1_b"][0]
    if form == "lokr":
        return next((shapes[f"lokr_w{n}_b"][0] for n in (1, 2) if f"lokr_w{n}" not in shapes), None)
    return None


def check(form: str, shapes: Shapes, weight: Shape) -> None:
    """Check that tensors of these shapes change a weight of that one.

    Raises:
        ValueError: the factors do not fit each other, or their product not the weight.
    """
    if form == "lora":
        up, down = shapes["up"], shapes["down"]
        mid = shapes.get("mid")
        delta = (up[0], *down[1:]) if mid is None else (up[0], down[1], *mid[2:])
        fits = up[1] == down[0] if mid is None else mid[:2] == (up[1], down[0])
    elif form == "loha":
        first, second = (
            _product_shape(shapes[f"hada_w{n}_a"], shapes[f"hada_w{n}_b"], shapes.get(f"hada_t{n}")) for n in (1, 2)
        )
        delta, fits = first, first == second
    elif form == "lokr":
        first, second = (
            shapes[f"lokr_w{n}"]
            if f"lokr_w{n}" in shapes
            else _product_shape(
                shapes[f"lokr_w{n}_a"], shapes[f"lokr_w{n}_b"], shapes.get("lokr_t2") if n == 2 else None
            )
            for n in (1, 2)
        )
        first = (*first, *[1] * (len(second) - len(first)))
        delta, fits = tuple(a * b for a, b in zip(first, second, strict=False)), len(first) == len(second)
    else:
        delta, fits = shapes["diff"], True
    sizes = [math.prod(shapes[kind]) for kind in ("dora", "magnitude") if kind in shapes]
    fits = fits and all(size in (weight[0], weight[1]) for size in sizes)
    if not fits or not (_fits(delta, weight) or _widens(delta, weight)):
        given = ", ".join(f"{kind} {shape}" for kind, shape in shapes.items())
        raise ValueError(f"{given} do not make a change of the model's weight, {tuple(weight)}")


def _product_shape(a: Shape, b: Shape, core: Shape | None) -> Shape:
    """The shape of `_product`; of a matrix product that cannot be, one that nothing has."""
    if core is not None:
        return (a[1], b[1], *core[2:]) if core[:2] == (a[0], b[0]) else (0,)
    return (a[0], *b[1:]) if a[1] == b[0] else (0,)


def _fits(delta: Shape, weight: Shape) -> bool:
    """Whether a change is one of the weight: linear layers may be stored as 1 × 1 convolutions, and the other way round."""
    return math.prod(delta) == math.prod(weight) and delta[0] == weight[0]


def _widens(delta: Shape, weight: Shape) -> bool:
    """Whether a change made for a network that takes the latents alone is one of a layer that takes further channels."""
    return len(delta) == len(weight) == 4 and delta[0] == weight[0] and delta[2:] == weight[2:] and delta[1] < weight[1]


def changed(form: str, tensors: Tensors, weight: Tensor, *, scale: float, strength: float) -> Tensor:
    """A weight as the tensors of its module change it.

    Args:
        form: as `form_of` says.
        tensors: by their kind, in fp32.
        weight: W, in fp32, a matrix or a convolution; it may be changed in place.
        scale: alpha / r.
        strength: s; 0 leaves the weight as it is.
    """
    if set(tensors) == {"down", "up"} and tensors["down"].numel() // tensors["down"].shape[0] == weight[0].numel():
        # What nearly all files hold, in one pass over the weight.
        up, down = tensors["up"].flatten(1) * (scale * strength), tensors["down"].flatten(1)
        return weight.flatten(1).addmm_(up, down).reshape(weight.shape)
    delta = scale * _fitted(_DELTAS[form](tensors), weight.shape)
    if "dora" not in tensors and "magnitude" not in tensors:
        return weight + strength * delta
    directed = weight + delta
    size = tensors["dora"] if "dora" in tensors else tensors["magnitude"].reshape(-1, *[1] * (weight.ndim - 1))
    rows = size.numel() == len(weight) and size.shape[0] == len(weight)
    # One size per output row, or in older files per input column.
    kept = 0 if rows else 1
    norm = directed.transpose(0, kept).flatten(1).norm(dim=1)
    shape = [len(norm) if dim == kept else 1 for dim in range(weight.ndim)]
    directed = directed * (size.reshape(shape) / (norm.reshape(shape) + torch.finfo(torch.float32).eps))
    return weight + strength * (directed - weight)


def _low_rank(tensors: Tensors) -> Tensor:
    up, down = tensors["up"], tensors["down"]
    if "mid" in tensors:  # around a convolution of its own, (r, r, k, k): a Tucker decomposition
        return torch.einsum("oa,abkl,bi->oikl", up.flatten(1), tensors["mid"], down.flatten(1))
    return (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def _hadamard(tensors: Tensors) -> Tensor:
    first, second = (
        _product(tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"], tensors.get(f"hada_t{number}"))
        for number in (1, 2)
    )
    return first * second


def _kronecker(tensors: Tensors) -> Tensor:
    first, second = (
        tensors[f"lokr_w{number}"]
        if f"lokr_w{number}" in tensors
        else _product(
            tensors[f"lokr_w{number}_a"], tensors[f"lokr_w{number}_b"], tensors.get("lokr_t2") if number == 2 else None
        )
        for number in (1, 2)
    )
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - first.ndim)), second.contiguous())


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """A @ B, or with a core (r, r, k, k), F[p, q, k, l] = sum over i, j of core[i, j, k, l] A[i, p] B[j, q]."""
    return a @ b if core is None else torch.einsum("ijkl,ip,jq->pqkl", core, a, b)


_DELTAS = {"lora": _low_rank, "loha": _hadamard, "lokr": _kronecker, "diff": lambda tensors: tensors["diff"]}


def _fitted(delta: Tensor, shape: Shape) -> Tensor:
    """The change in its weight's shape; further channels that the weight has are not changed."""
    if _fits(delta.shape, shape):
        return delta.reshape(shape)
    return torch.nn.functional.pad(delta, (0, 0, 0, 0, 0, shape[1] - delta.shape[1]))
