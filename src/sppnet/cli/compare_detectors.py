"""`sppnet compare detectors`: reproduce Tables 9 and 10 of the SPP-net paper on other data."""

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.table import Table

from sppnet.cli.common import add_format, list_problems
from sppnet.cli.console import line, message, results
from sppnet.cli.detect import add_network, add_windows
from sppnet.cli.parser import CommandParser, options_of
from sppnet.detect.options import DetectOptions


def compare_parser() -> CommandParser:
    """Build the argument parser of `sppnet compare detectors`."""
    parser = CommandParser(
        "compare detectors",
        "Train SPP-net at one scale and at five, and R-CNN, on the same windows with the same heads, and print Tables 9"
        " and 10 of the SPP-net paper for your data, and compare them with the two-stage detector. R-CNN is slow,"
        " because it runs the network once per window. Run the same command again to continue after an interruption.",
    )
    option, options = parser.option, DetectOptions(proposals="selective-search", windows=500)
    option("data", "data", "data set in the format of VOC, COCO or YOLO")
    add_format(parser)
    option("data", "--split", "split to train on", "train")
    option("data", "--test-split", "split to score on", "val")
    option("data", "--max-images", "number of images to use from each split; default: all", type=int | None)
    add_network(parser, options)
    add_windows(parser, "model", options, "shorter side of the images for one scale, in pixels")
    option("training", "--seeds", "number of runs of fine-tuning and SVM training", 3, type=int)
    parser.fields(
        "training",
        options,
        seed="first random seed",
        epochs="epochs of fine-tuning",
        steps="batches per epoch of fine-tuning",
    )
    text = "output folder for results, checkpoints and features"
    option("output", "--out", text, "sppnet-detectors", metavar="DIR")
    parser.fields(
        "output", options, cache="cache of proposals and features, shareable; default: the folder cache in DIR"
    )
    option("output", "--json", "print one JSON object and nothing else", False, action="store_true")
    parser.fields("hardware", options, device="device", workers="number of images searched for proposals in parallel")
    return parser


def compare(arguments: Namespace) -> int:
    """Compare the detectors, write and print the results, and return 0, or 1 if an image could not be read."""
    from sppnet.data.formats.detection import choose_split, read_detection
    from sppnet.io.files import write_json
    from sppnet.studies.detectors import compare_detectors, comparison_content

    options = options_of(DetectOptions, arguments)
    if len(options.hidden) != 2:
        raise ValueError(f"hidden: expected two sizes, those of fc6 and fc7, got {options.hidden}")
    if len(options.scales) != 1:
        raise ValueError(f"scales: expected one scale, got {options.scales}")
    for name in ("seeds", "max_images"):
        if arguments[name] is not None and arguments[name] < 1:
            raise ValueError(f"{name}: expected at least 1, got {arguments[name]}")
    data, format = arguments.data, arguments.format
    train = read_detection(data, choose_split(data, arguments.split, format=format), format=format)
    test_split = choose_split(data, arguments.test_split, format=format)
    test = read_detection(data, test_split, train.classes, more_classes=True, format=format)
    train = dataclasses.replace(train, classes=test.classes)
    first = slice(arguments.max_images)
    train, test = (dataclasses.replace(part, samples=part.samples[first]) for part in (train, test))
    out = Path(arguments.out)
    comparison = compare_detectors(train, test, options, out, arguments.seeds)
    content = comparison_content(comparison)
    write_json(content, out / "comparison.json")
    list_problems((*train.problems, *test.problems, *comparison.problems), ())
    if arguments.json:
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        for table in result_tables(content):
            results.print(table)
        line(content["verdict"])
        results.print(paper_table(content))
        message(f"results written to {out / 'comparison.json'}")
    return 1 if comparison.problems else 0


def result_tables(content: dict[str, Any]) -> list[Table]:
    """Format average precision, seconds per image, and a comparison of the complete detectors as three tables."""
    columns, paper, images = content["columns"], content["paper"], content["images"]
    title = (
        f"AP50 in %, mean (min to max of {content['seeds']} seeds), {images['train']} training and"
        f" {images['test']} test images"
    )
    precision = Table("", *columns, title=title, title_justify="left")
    for row in paper["map_voc07"]:
        values = [[100 * value for value in column["ap50"][row]] for column in columns.values()]
        precision.add_row(row, *map(_spread, values))
    title = (
        f"seconds per image with {content['windows']:.0f} windows, R-CNN's convolutions extrapolated from a sample of"
        f" {columns['R-CNN']['sample']} windows"
    )
    speed = Table("", *columns, title=title, title_justify="left")
    for row in paper["seconds"]:
        digits = 0 if row == "speed-up" else 3
        speed.add_row(row, *(f"{column['seconds'][row]:.{digits}f}" for column in columns.values()))
    complete = Table("", "AP50 %", "seconds of proposals", "seconds in all", title_justify="left")
    complete.title = "complete detectors, seconds per image with proposals; the two-stage detector learns its proposals"
    for name, detector in content["detectors"].items():
        seconds = [detector["seconds"][key] for key in ("proposals", "in all")]
        shown = ("from a file" if value is None else f"{value:.3f}" for value in seconds)
        complete.add_row(name, _spread([100 * value for value in detector["ap50"]]), *shown)
    return [precision, speed, complete]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def paper_table(content: dict[str, Any]) -> Table:
    """Format the results in the paper as a table."""
    title = (
        "the paper's mAP in % on VOC 2007, with AlexNet for R-CNN, and its seconds per image on a GPU with ZF-5 and"
        " some 2,000 windows"
    )
    table = Table("", *content["columns"], title=title, title_justify="left")
    for part in ("map_voc07", "seconds"):
        for row, values in content["paper"][part].items():
            table.add_row(row, *(f"{value:g}" for value in values))
    return table
