"""`genpipe models`: the models, LoRAs and textual inversions in a folder, with their families."""

import argparse

EXAMPLES = """\
examples:
  genpipe models --model-dir ~/stable-diffusion-webui
  GENPIPE_MODELS=~/ComfyUI genpipe models
"""


def models_command(parser: argparse.ArgumentParser) -> None:
    """list the models, LoRAs and textual inversions in a folder, also of an A1111 or ComfyUI installation"""
    parser.usage = "%(prog)s [--model-dir DIR]"
    parser.epilog = EXAMPLES
    parser.set_defaults(run=_models)
    parser.add_argument("--model-dir", metavar="DIR", help="the folder (default: those that GENPIPE_MODELS lists)")


def _models(args: argparse.Namespace) -> int:
    from genpipe.checkpoints.library import VARIABLE, entries, model_folders

    folders = model_folders(args.model_dir)
    if not folders:
        raise ValueError(f"where are the models? Give their folder with --model-dir, or set {VARIABLE}")
    found = entries(folders)
    if not found:
        raise ValueError(f"there are no models in {', '.join(map(str, folders))}")

    from genpipe.checkpoints.describe import summary

    for entry in found:
        print(f"{entry.kind:<14}{entry.name:<40} {summary(entry.path)}")
    return 0
