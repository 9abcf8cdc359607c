"""Implements `python -m flaxseg import`."""

import argparse

import flaxseg

NAME = "import"
SUMMARY = "convert a network of another library"
TEXT = """Converts a segmentation network of another library into a saved model, for predict and
evaluate. As for --config.init.backbone, SOURCE is a file (.safetensors, .npz, .pth, ...), a folder
with one, or hf:OWNER/REPOSITORY[/FILE] on the Hugging Face hub. PyTorch files are read without
running any code in them.
"""
EPILOG = """examples:
  python -m flaxseg import deeplabv3_resnet50_coco.pth --out=models/coco
  python -m flaxseg predict street.jpg --model=models/coco --out=masks
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("source", metavar="SOURCE", help="file, folder, or name on the hub")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the saved model")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg.weights import import_model

    folder = import_model(args.source, args.out)
    card = flaxseg.read_model_card(folder)
    print(f"{card['model']} with {card['num_classes']} classes is in {folder}")
    if "protocol" in card["options"]:
        print(f"its protocol is that of its authors: {card['options']['protocol']}")
    return 0
