"""`sppnet compare pooling`: which pooling of the feature maps is best for your images."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.table import Table

from sppnet.classify.options import ClassifyOptions
from sppnet.cli.classify import add_network
from sppnet.cli.common import add_format, list_problems
from sppnet.cli.console import line, message, results
from sppnet.cli.parser import CommandParser, options_of


def pooling_parser() -> CommandParser:
    """Build the argument parser of `sppnet compare pooling`."""
    parser = CommandParser(
        "compare pooling",
        "Compare global mean, global maximum, class token (of transformers), one spatial pyramid, and pyramids of"
        " several stages, as vectors of a frozen network, on repeated random splits of your images. The network runs"
        " once for each image.",
    )
    option, options = parser.option, ClassifyOptions()
    option("data", "data", "folder of class folders, folder of splits (train is used), or CSV file with path,label")
    add_format(parser)
    option("data", "--split", "split to use; default: train, if there are splits", type=str | None)
    add_network(parser, options)
    text = "ridge or svm; default: ridge"
    parser.fields(
        "model", options, head=text, resize="resize policy; default: native", svm_c="penalty C of the head svm"
    )
    option("training", "--seeds", "number of random splits; each tests on a fifth of each class", 5, type=int)
    parser.fields(
        "training",
        options,
        seed="first random seed",
        max_pixels="largest image area at native sizes, in pixels; larger images are resized",
    )
    option("output", "--out", "output folder for the results", "sppnet-pooling", metavar="DIR")
    parser.fields(
        "output",
        options,
        cache="cache of vectors, which runs may share; default: the folder cache in DIR",
        cache_limit="largest size of the cached vectors in GB",
    )
    option("output", "--json", "print one JSON object and nothing else", False, action="store_true")
    parser.fields("hardware", options, device="device")
    return parser


def pooling(arguments: Namespace) -> int:
    """Compare the methods, write and print the results, and return 0, or 1 if an image could not be used."""
    from sppnet.data.formats.classification import choose_classification_split, read_classification
    from sppnet.io.files import write_json
    from sppnet.studies.pooling import compare_pooling, verdict

    options = options_of(ClassifyOptions, arguments)
    split = choose_classification_split(arguments.data, arguments.split, "train", format=arguments.format)
    data = read_classification(arguments.data, split, format=arguments.format)
    out = Path(arguments.out)
    comparison = compare_pooling(data, options, out, arguments.seeds)
    content = comparison.to_dict() | {"verdict": verdict(comparison)}
    out.mkdir(parents=True, exist_ok=True)
    write_json(content, out / "comparison.json")
    list_problems(data.problems, comparison.failures)
    if arguments.json:
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        results.print(_table(content))
        line(content["verdict"])
        message(f"results written to {out / 'comparison.json'}")
    return 1 if comparison.failures else 0


def _table(content: dict[str, Any]) -> Table:
    title = f"mean (lowest to highest) of {content['seeds']} random splits of {content['images']} images"
    heads = ("", "numbers per image", "mean per class %", "top-1 %", "calibration error")
    table = Table(*heads, title=title, title_justify="left")
    for name, method in content["pooling"].items():
        cells = []
        for score, factor, digits in (("mean_per_class_accuracy", 100, 1), ("top1", 100, 1), ("ece", 1, 3)):
            values = [factor * run[score] for run in method["runs"]]
            mean, *ends = (f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values)))
            cells.append(f"{mean} ({' to '.join(ends)})")
        table.add_row(name, str(method["length"]), *cells)
    return table
