"""`genpipe convert`: a single file into a folder and back, with LoRAs merged in."""

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  genpipe convert dreamshaper.safetensors dreamshaper
  genpipe convert dreamshaper dreamshaper.safetensors --dtype fp16
  genpipe convert base.safetensors merged.safetensors --lora style.safetensors:0.8
"""


def convert_command(parser: argparse.ArgumentParser) -> None:
    """convert a model between a single file and a folder in the diffusers layout, and merge LoRAs in"""
    parser.usage = "%(prog)s IN OUT [options]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_convert)
    parser.add_argument("source", metavar="IN", help="a file, a folder, a name in --model-dir, or a hub id")
    parser.add_argument("target", type=Path, metavar="OUT", help="a file that ends in .safetensors, or else a folder")
    group = parser.add_argument_group("options")
    group.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:X]", help="merge it in at strength X (repeatable)"
    )
    group.add_argument("--file", metavar="NAME", help="the model's file, of a hub repository that holds several")
    group.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the stored weights (default: as they are)")
    group.add_argument("--vae", metavar="FILE_OR_DIR", help="this autoencoder in place of the model's")
    group.add_argument(
        "--text-encoder",
        action="append",
        metavar="FILE_OR_DIR",
        help="this text encoder in place of the model's (repeatable)",
    )
    group.add_argument("--model-dir", metavar="DIR", help="where models are found by name (default: GENPIPE_MODELS)")
    group.add_argument("--allow-pickle", action="store_true", help="read .ckpt files too: their tensors, no code")


def _convert(args: argparse.Namespace) -> int:
    from genpipe.inputs import Lora

    loras = [Lora.of(given) for given in args.lora]

    import torch

    from genpipe.checkpoints import load_checkpoint, load_lora, save_folder
    from genpipe.checkpoints.single_file_saving import save_single_file

    checkpoint = load_checkpoint(
        args.source,
        file=args.file,
        vae=args.vae,
        text_encoder=args.text_encoder,
        allow_pickle=args.allow_pickle,
        model_dir=args.model_dir,
    )
    patches = [
        load_lora(
            lora.path, checkpoint, lora.strength, text_strength=lora.text_strength, allow_pickle=args.allow_pickle
        )
        for lora in loras
    ]
    if patches:
        checkpoint = checkpoint.with_patches(patches)
    dtype = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.dtype]
    if args.target.suffix.lower() == ".safetensors":
        save_single_file(args.target, checkpoint, dtype=dtype)
    else:
        save_folder(args.target, checkpoint, dtype=dtype)
    print(args.target)
    return 0
