"""`sppnet convert`: write a detection data set in another format."""

from typing import Literal

from jsonargparse import Namespace

from sppnet.cli.common import add_format, list_problems
from sppnet.cli.console import line
from sppnet.cli.parser import CommandParser


def convert_parser() -> CommandParser:
    """Build the argument parser of `sppnet convert`."""
    parser = CommandParser(
        "convert",
        "Write a data set of images with boxes in another format, with all its splits. Images are hard links to those"
        " of DATA, or copies on another file system. DIR appears when it is complete.",
    )
    parser.option("data", "data", "data set in the format of VOC, COCO or YOLO")
    add_format(parser)
    text = "new format: coco, yolo, voc (corners are whole pixels), or csv (box files, without images that have no box)"
    parser.option("output", "--to", text, type=Literal["coco", "yolo", "voc", "csv"], required=True, metavar="NAME")
    parser.option("output", "--out", "folder of the new data set, which must not exist", required=True, metavar="DIR")
    return parser


def convert(arguments: Namespace) -> int:
    """Convert the data set and return 0, or 1 if an image could not be read."""
    from sppnet.detect.convert import convert_detection

    conversion = convert_detection(arguments.data, arguments.out, arguments.to, format=arguments.format)
    list_problems(conversion.problems, conversion.failures)
    counts = (f"{f'{split} ' if split else ''}{count} images" for split, count in conversion.images.items())
    line(f"{arguments.out}: {', '.join(counts)}")
    return 1 if conversion.failures else 0
