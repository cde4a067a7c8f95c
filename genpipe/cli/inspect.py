"""`genpipe vision inspect`: its arguments, and where what it draws is saved."""

import argparse
import sys
from pathlib import Path


def inspect_command(parser: argparse.ArgumentParser) -> None:
    """draw what a classifier sees in an image: its first filters, feature maps of a layer, and Grad-CAM"""
    parser.usage = "%(prog)s IMAGE --weights FILE [options]"
    parser.set_defaults(run=_inspect)
    parser.add_argument("image", metavar="IMAGE", help="the image to look at")
    parser.add_argument("--weights", required=True, metavar="FILE", help="a .safetensors file or its URL")
    parser.add_argument("-m", "--model", metavar="NAME",
                        help="resnet50, alexnet, ... where the weights do not say it")  # fmt: skip
    parser.add_argument("--allow-pickle", action="store_true", help="read weights that are not safetensors (.pth)")
    parser.add_argument("--layer", metavar="NAME", help="layer3.1, ... (default: the last one that has maps)")
    parser.add_argument("--class", dest="target", metavar="NAME",
                        help="name or number of the class that Grad-CAM explains (default: the likeliest)")  # fmt: skip
    parser.add_argument("--device", metavar="NAME", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument("--outdir", default=".", metavar="DIR", help="where to save, made if missing (default: here)")


def _inspect(args: argparse.Namespace) -> int:
    from genpipe.hardware import choose_device
    from genpipe.vision.inspection import inspect_image
    from genpipe.vision.reading import read_image
    from genpipe.vision.weights import load_classifier

    device = choose_device(args.device)
    image = read_image(args.image)
    classifier = load_classifier(args.weights, args.model, allow_pickle=args.allow_pickle)
    classifier.network.to(device)
    target = args.target
    if target is not None and target not in classifier.classes and target.isdecimal():
        target = int(target)
    stem = Path(args.image).stem
    inspection = inspect_image(classifier, image, layer=args.layer, target=target)
    for path in inspection.save(Path(args.outdir), stem):
        print(path)
    print(f"{inspection.layer} for {classifier.classes[inspection.target]!r}", file=sys.stderr)
    return 0
