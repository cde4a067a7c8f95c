"""Networks of diffusers under the names that their authors' single files have: the way back from what diffusers reads."""

import torch
from torch import Tensor

from genpipe.checkpoints import layout, ldm_layout

UNET, VAE = "model.diffusion_model.", "first_stage_model."
_ENDS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_JOINED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def stable_diffusion_3(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The tensors of a transformer of Stable Diffusion 3 as Stability AI calls and joins them."""
    found: dict[str, Tensor] = {}

    def put(name: str, tensor: Tensor, *, last: bool) -> None:
        found[name] = torch.cat(tensor.chunk(2)[::-1]) if last else tensor  # scale and shift are the other way round

    for ours, theirs in _ENDS.items():
        for kind in ("", ".weight", ".bias"):
            if f"{ours}{kind}" in state:
                put(f"{theirs}{kind}", state[f"{ours}{kind}"], last=ours == "norm_out.linear")
    for layer in range(layers):
        ours, theirs = f"transformer_blocks.{layer}.", f"joint_blocks.{layer}."
        for kind in (".weight", ".bias"):
            for name, parts in _JOINED.items():
                found[f"{theirs}{name}{kind}"] = torch.cat([state[f"{ours}{part}{kind}"] for part in parts])
            for name, called in _BLOCK.items():
                if f"{ours}{name}{kind}" in state:
                    last = name == "norm1_context.linear" and layer == layers - 1
                    put(f"{theirs}{called}{kind}", state[f"{ours}{name}{kind}"], last=last)
    assert sum(tensor.numel() for tensor in found.values()) == sum(tensor.numel() for tensor in state.values())
    return found


def autoencoder(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The tensors of an autoencoder as CompVis calls and shapes them."""
    names, found = ldm_layout.vae(levels, VAE), {}
    for key, tensor in state.items():
        ours = layout.VAE.ours(key)
        assert ours is not None
        name, _, mark = names.theirs(ours).partition("#")
        found[name] = tensor[..., None, None] if mark == "C" and tensor.ndim == 2 else tensor
    return found
