"""`sppnet compare sizes`: reproduce Tables 2 and 3 of the SPP-net paper on other images."""

import json
import sys
from pathlib import Path

from jsonargparse import Namespace

from sppnet.classify.options import ClassifyOptions
from sppnet.cli.classify import add_network
from sppnet.cli.common import add_format, add_optimization, list_problems
from sppnet.cli.console import line, message, results
from sppnet.cli.parser import CommandParser, options_of


def sizes_parser() -> CommandParser:
    """Build the argument parser of `sppnet compare sizes`."""
    parser = CommandParser(
        "compare sizes",
        "Train a network without SPP, and with SPP at one size, two alternating sizes, random sizes and native sizes,"
        " with equal epochs and seeds, and print Tables 2 and 3 of the SPP-net paper for your images. Each training is"
        " a run folder in DIR. Run the same command again to continue after an interruption, or to print a finished"
        " comparison.",
    )
    option, options = parser.option, ClassifyOptions()
    option("data", "data", "folder of splits (train, val or test); with --val, class folders or a CSV file")
    add_format(parser)
    option("data", "--val", "test images; default: the split val or test", type=str | None, metavar="DATA")
    text = "{} images per class; default: all"
    option("data", "--images-per-class", text.format("training"), type=int | None, metavar="K")
    option("data", "--val-images-per-class", text.format("test"), type=int | None, metavar="K")
    add_network(parser, options)
    parser.fields("model", options, head="linear or fc (the paper's three layers); default: linear")
    option("training", "--seeds", "number of trainings per variant", 3, type=int)
    parser.fields(
        "training",
        options,
        seed="first random seed",
        max_pixels="largest image area at native sizes, in pixels; larger images are resized",
        epochs="number of epochs of each training",
        batch="images per batch",
    )
    add_optimization(parser, options, "optimizer", "lr", "weight_decay", "schedule", "precision")
    option("output", "--out", "output folder for the runs and the results", required=True, metavar="DIR")
    option("output", "--json", "print one JSON object and nothing else", False, action="store_true")
    parser.fields("hardware", options, device="device", workers="number of processes that decode images")
    return parser


def sizes(arguments: Namespace) -> int:
    """Compare the sizes, write and print the results, and return 0, or 1 if an image could not be used."""
    from sppnet.cli.size_tables import paper_table, tables
    from sppnet.data.formats.classification import choose_classification_split, read_classification
    from sppnet.data.formats.table import split_names
    from sppnet.data.splits import first_split
    from sppnet.io.files import write_json
    from sppnet.studies.sizes import compare_sizes, comparison_content, first_images, verdict

    options = options_of(ClassifyOptions, arguments)
    for name in ("images_per_class", "val_images_per_class"):
        if arguments[name] is not None and arguments[name] < 1:
            raise ValueError(f"{name.replace('_', '-')}: expected at least 1, got {arguments[name]}")
    format = arguments.format
    split = choose_classification_split(arguments.data, None, "train", format=format)
    train = read_classification(arguments.data, split, format=format)
    root = arguments.val or arguments.data
    split = first_split(split_names(root, "classify", format), "val", "test")
    if arguments.val is None and split is None:
        raise ValueError(f"val: expected a split val or test in {root}, got none; set --val to labeled images")
    val = read_classification(root, split, train.classes, format=format)
    problems = train.problems + val.problems
    train = first_images(train, arguments.images_per_class, options.seed)
    val = first_images(val, arguments.val_images_per_class, options.seed)
    out = Path(arguments.out)
    comparison = compare_sizes(train, val, options, out, arguments.seeds)
    content = comparison_content(comparison) | {"verdict": verdict(comparison)}
    write_json(content, out / "comparison.json")
    list_problems(problems, comparison.failures)
    if arguments.json:
        sys.stdout.write(json.dumps(content) + "\n")
        return 1 if comparison.failures else 0
    for table in tables(content):
        results.print(table)
    line(content["verdict"])
    results.print(paper_table(content))
    message(f"results written to {out / 'comparison.json'}")
    return 1 if comparison.failures else 0
