"""Using what a network has learned for something else."""

import difflib
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from genpipe.vision.architectures import find_head
from genpipe.vision.resnet import ResNet, ResNetEncoder

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def replace_head(model: nn.Module, classes: int) -> nn.Module:
    """Put a fresh linear layer for `classes` classes in place of the model's last one; returns the model.

    Raises:
        ValueError: fewer than two classes, or a model without a linear layer.
    """
    if classes < 2:
        raise ValueError(f"a classifier of {classes} classes has nothing to choose: use 2 or more")
    name, head = find_head(model)
    weight = head.weight
    biased = head.bias is not None
    fresh = nn.Linear(head.in_features, classes, bias=biased, device=weight.device, dtype=weight.dtype)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, fresh)
    return model


def load_encoder(encoder: ResNetEncoder, classifier: ResNet) -> None:
    """Give a segmentation's or detector's encoder what a classifier of the same depth and width has learned.

    Raises:
        ValueError: they do not have the same layers.
    """
    learned = {name: tensor for name, tensor in classifier.state_dict().items() if not name.startswith("fc.")}
    wanted = encoder.state_dict()
    if {name: tensor.shape for name, tensor in learned.items()} != {name: t.shape for name, t in wanted.items()}:
        raise ValueError(
            f"the classifier's stages have {classifier.channels} channels, the encoder's {encoder.channels}, or other "
            "depths: build them alike"
        )
    encoder.load_state_dict(learned)


def freeze(model: nn.Module, layers: Sequence[str] | None = None) -> nn.Module:
    """Keep layers as they are in training: no gradients, and batch norms use and keep their statistics.

    Args:
        model: changed in place and returned.
        layers: names of modules, with all that is in them; None freezes everything but the head.

    Raises:
        ValueError: a name that the model does not have.
    """
    if layers is None:
        frozen, head = [model], [find_head(model)[1]]
    else:
        frozen, head = [_layer(model, name) for name in layers], []
    kept = {parameter for module in head for parameter in module.parameters()}
    for module in frozen:
        for parameter in module.parameters():
            parameter.requires_grad_(parameter in kept)
        for norm in module.modules():
            if isinstance(norm, BATCH_NORMS):
                # `model.train()` would put it back into training.
                norm.register_forward_pre_hook(_stay_in_evaluation)
    return model


def features(model: nn.Module, layers: Sequence[str]) -> "Features":
    """Make of `model` a network that returns what some of its layers put out, by name.

    features(resnet, ["layer2", "layer4"])(pixels)["layer4"] is (B, C, H/32, W/32).

    Raises:
        ValueError: no layers, or a name that the model does not have.
    """
    return Features(model, layers)


class Features(nn.Module):
    """A network that `features` makes; its parameters are the model's own, so it can be part of one that is trained."""

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        if not layers:
            raise ValueError("no layers given: name one or more, for example layer4")
        for name in layers:
            _layer(model, name)
        self.model = model
        self.layers = tuple(layers)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return what each layer puts out, in the order in which they were named; of a layer that runs twice, the last."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
                # A copy, since the next layer may change it in place.
                found[name] = output.clone()

            return hook

        hooks = [self.model.get_submodule(name).register_forward_hook(keep(name)) for name in self.layers]
        try:
            self.model(pixels)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: found[name] for name in self.layers}


def _layer(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if not name or name not in modules:
        near = difflib.get_close_matches(name, modules, n=3) or [child for child, _ in model.named_children()]
        raise ValueError(f"{type(model).__name__} has no layer {name!r}: try {', '.join(near)}")
    return modules[name]


def _stay_in_evaluation(norm: nn.Module, _: tuple[Tensor, ...]) -> None:
    norm.eval()
