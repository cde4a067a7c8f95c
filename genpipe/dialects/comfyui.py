"""ComfyUI: the graph of nodes that its files carry under "prompt", read where it draws one image from one prompt."""

import json
import re
from collections.abc import Mapping
from typing import Any

from genpipe.dialects.parameters import Parameters
from genpipe.messages import listed
from genpipe.sampling.names import canonical_name

_SAMPLERS = ("KSampler", "KSamplerAdvanced")
# What shows, saves or decodes the image that the sampler makes, and says nothing of it.
_ENDS = {"SaveImage", "PreviewImage", "VAEDecode", "SaveAnimatedWEBP", "Note", "MarkdownNote"}
# Inputs of other nodes that hold a text.
_TEXTS = ("text", "string", "value", "prompt")
# ComfyUI's names of solvers that are no spelling of ours.
_SOLVERS = {
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_a",
    "dpmpp_2s_ancestral": "dpmpp_2s_a",
    "uni_pc": "unipc",
    "ddim_uniform": "ddim",
}
_MAX_DEPTH = 50  # of nodes that hand something on
_Node = Mapping[str, Any]


def parse_graph(text: str) -> Parameters | None:
    """Read the graph that ComfyUI's API takes; None for a text that is no such graph.

    Prompts, sizes and the sampler's settings are read where they stand in the graph as values. Everything else, such as
    other nodes' changes of the model, is in `unread`.
    """
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(graph, dict) or not graph or not all(_is_node(node) for node in graph.values()):
        return None
    return _Reader({str(key): node for key, node in graph.items()}).read()


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


class _Reader:
    """Follows the links from the sampler to where its inputs come from."""

    def __init__(self, graph: Mapping[str, _Node]) -> None:
        self._graph = graph
        self._seen: set[str] = set()
        self._found = Parameters({}, None, {})

    def read(self) -> Parameters:
        found = self._found
        samplers = [key for key, node in self._graph.items() if node["class_type"] in _SAMPLERS]
        if len(samplers) != 1:
            kinds = sorted({node["class_type"] for node in self._graph.values()})
            found.leave("graph", f"it has {len(samplers)} KSamplers, and genpipe reads those of one; {listed(kinds)}")
            return found
        (key,) = samplers
        self._seen.add(key)
        inputs = self._graph[key]["inputs"]
        for theirs, ours in (("seed", "seed"), ("noise_seed", "seed"), ("steps", "steps"), ("cfg", "guidance_scale")):
            found.take(ours, self._value(inputs.get(theirs)), called=theirs)
        self._sampler(inputs)
        for theirs, usual in (("start_at_step", 0), ("return_with_leftover_noise", "disable"), ("add_noise", "enable")):
            if inputs.get(theirs, usual) != usual:
                found.leave(theirs, inputs[theirs])
        if inputs.get("end_at_step", 10_000) < inputs.get("steps", 0):
            found.leave("end_at_step", inputs["end_at_step"])
        self._prompt(inputs.get("positive"), "prompt")
        self._prompt(inputs.get("negative"), "negative_prompt")
        self._latent(inputs)
        model = self._model(inputs.get("model"))
        others = [n["class_type"] for key, n in self._graph.items() if key not in self._seen | self._known_ends()]
        if others:
            found.leave("nodes", listed(sorted(others)))
        if any(re.search(r"\([^()]*:", str(found.settings.get(name))) for name in ("prompt", "negative_prompt")):
            found.leave("weights", "ComfyUI applies them without A1111's renormalisation")
        return found._replace(model=model)

    def _known_ends(self) -> set[str]:
        return {key for key, node in self._graph.items() if node["class_type"] in _ENDS}

    def _node(self, link: Any) -> _Node | None:
        """The node that a link leads to; None for a value."""
        if isinstance(link, list) and len(link) == 2 and str(link[0]) in self._graph:
            self._seen.add(str(link[0]))
            return self._graph[str(link[0])]
        return None

    def _value(self, given: Any) -> Any:
        """A value, also of a node that holds nothing but it; None for what other nodes make."""
        node = self._node(given)
        if node is None:
            return None if isinstance(given, list) else given
        values = [value for key, value in node["inputs"].items() if key.lower() in (*_TEXTS, "seed", "int", "float")]
        if len(values) == 1 and isinstance(values[0], str | int | float):
            return values[0]
        self._found.leave(node["class_type"], "what it makes is not in the file")
        return None

    def _sampler(self, inputs: Mapping[str, Any]) -> None:
        solver, spacing = inputs.get("sampler_name"), inputs.get("scheduler", "normal")
        if not isinstance(solver, str) or not isinstance(spacing, str):
            return
        plain = solver.removesuffix("_gpu")
        plain = _SOLVERS.get(plain, plain)
        spacing = "normal" if spacing == "ddim_uniform" else spacing
        try:
            self._found.settings["sampler"] = canonical_name(f"{plain}_{spacing}")
        except ValueError:
            self._found.leave("sampler_name", f"{solver} with {spacing}")

    def _prompt(self, link: Any, name: str) -> None:
        """Follow what guides the sampler to the text that it comes from."""
        for _ in range(_MAX_DEPTH):
            node = self._node(link)
            if node is None:
                self._found.leave(name, "nothing is linked to it")
                return
            kind, inputs = node["class_type"], node["inputs"]
            if kind in ("CLIPTextEncode", "CLIPTextEncodeSDXL"):
                self._text(inputs, name)
                return
            self._found.leave(kind, f"what it does to the {name}")
            place = "positive" if name == "prompt" else "negative"
            link = inputs.get("conditioning", inputs.get(place))
        self._found.leave(name, "its nodes are linked in a circle")

    def _text(self, inputs: Mapping[str, Any], name: str) -> None:
        texts = [self._value(inputs[key]) for key in ("text", "text_g", "text_l") if key in inputs]
        self._found.take(name, texts[0] if texts else None, called=name)
        if len(set(texts)) > 1:
            self._found.leave("text_l", texts[1])
        if name == "prompt":
            for ours, (down, across) in {
                "original_size": ("height", "width"),
                "crop": ("crop_h", "crop_w"),
                "target_size": ("target_height", "target_width"),
            }.items():
                if down in inputs and across in inputs:
                    self._found.take(ours, (self._value(inputs[down]), self._value(inputs[across])), called=ours)
        node, depth = self._node(inputs.get("clip")), 0
        while node is not None and "clip" in node["inputs"] and depth < _MAX_DEPTH:
            if node["class_type"] == "CLIPSetLastLayer" and name == "prompt":
                self._found.leave("CLIPSetLastLayer", node["inputs"].get("stop_at_clip_layer"))
            node, depth = self._node(node["inputs"]["clip"]), depth + 1

    def _latent(self, inputs: Mapping[str, Any]) -> None:
        node = self._node(inputs.get("latent_image"))
        if node is None:
            return
        if node["class_type"] in ("EmptyLatentImage", "EmptySD3LatentImage"):
            for name in ("width", "height"):
                self._found.take(name, self._value(node["inputs"].get(name)), called=name)
            if node["inputs"].get("batch_size", 1) != 1:
                self._found.leave("batch_size", node["inputs"]["batch_size"])
            return
        if node["class_type"] in ("VAEEncode", "VAEEncodeForInpaint"):
            image = self._node(node["inputs"].get("pixels"))
            named = image["inputs"].get("image") if image is not None else "another node's"
            self._found.leave("image", f"{named} (give its file with --image)")
            self._found.take("strength", self._value(inputs.get("denoise")), called="denoise")
            return
        self._found.leave(node["class_type"], "what the image begins from")

    def _model(self, link: Any) -> str | None:
        for _ in range(_MAX_DEPTH):
            node = self._node(link)
            if node is None:
                return None
            kind, inputs = node["class_type"], node["inputs"]
            for key in ("ckpt_name", "unet_name"):
                if isinstance(inputs.get(key), str):
                    return inputs[key]
            values = [f"{key} {value}" for key, value in inputs.items() if isinstance(value, str | int | float)]
            self._found.leave(kind, ", ".join(values) or "what it does to the model")
            link = inputs.get("model")
        return None
