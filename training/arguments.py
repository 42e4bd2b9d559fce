"""Command-line arguments that the training commands share. This module does not import torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from perigee.support.command import positive


def source_value(text: str) -> tuple[str, float]:
    """Parse ``SOURCE=NUMBER``. Raises ArgumentTypeError."""
    name, _, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        name = ""
    if not name:
        raise argparse.ArgumentTypeError(f"{text} is not of the form SOURCE=NUMBER")
    return name, number


def crop_side(text: str) -> int:
    """Parse the side of a crop, a positive multiple of 64 pixels. Raises ArgumentTypeError."""
    try:
        side = int(text)
    except ValueError:
        side = 0
    if side <= 0 or side % 64:
        raise argparse.ArgumentTypeError(f"{text} is not a positive multiple of 64")
    return side


def add_data_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    """Add the arguments that choose images: ``--data``, ``--exclude`` and ``--weight``."""
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        required=required,
        default=None if required else [],
        metavar="DIR",
        help="folder of 8-bit RGB images (repeatable)",
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="SOURCE", help="leave out a source of images (repeatable)"
    )
    parser.add_argument(
        "--weight",
        action="append",
        type=source_value,
        default=[],
        metavar="SOURCE=W",
        help="draw images of a source W times as often (repeatable)",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where to compute: ``--device`` and ``--threads``."""
    parser.add_argument("--device", default="cpu", help="device to train on, cpu or cuda (default %(default)s)")
    parser.add_argument("--threads", type=positive, metavar="N", help="number of CPU threads (default: all cores)")
