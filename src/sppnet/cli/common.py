"""Parsing of option values and printing of results, shared by all commands."""

import csv
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import Namespace
from rich.table import Table

from sppnet.cli.console import message, results
from sppnet.cli.parser import CommandParser
from sppnet.errors import ImageError, printable
from sppnet.training.options import LoopOptions

T = TypeVar("T")


def add_format(parser: CommandParser) -> None:
    """Add the option --format."""
    text = "format of DATA, such as coco, yolo, csv or class-folders; default: detected"
    parser.option("data", "--format", text, type=str | None, metavar="NAME")


def add_stages(parser: CommandParser, options: Any, stages: str) -> None:
    """Add the options of what is trained, and from which weights; `stages` is a help text."""
    text = "run to start from, also with other classes; of another task only its backbone"
    parser.option("model", "--init", text, type=str | None, metavar="RUN")
    parser.fields("training", options, train_stages=(stages, _as_text), freeze_backbone="the same as --train-stages 0")


def add_optimization(parser: CommandParser, options: Any, *names: str) -> None:
    """Add the options of the optimizer with these names; all of them without names."""
    texts = {
        "optimizer": "optimizer",
        "lr": "peak learning rate; default: that of the optimizer (adamw 3e-4, sgd 1e-2), or of the task",
        "weight_decay": "decay of weights, not of biases and norms; default: 5e-2 for adamw, 5e-4 for sgd",
        "schedule": "learning rate schedule",
        "warmup_epochs": "epochs, or a fraction of one, in which the learning rate rises linearly",
        "accumulate": "batches per step of the optimizer",
        "label_smoothing": "share of each target that is divided among all classes",
        "ema": "train and keep a moving average of the weights with this decay, such as 0.999; default: no average",
        "precision": "precision of training",
    }
    parser.fields("optimization", options, **{name: texts[name] for name in names or texts})


def add_best_epoch(parser: CommandParser, options: LoopOptions) -> None:
    """Add the options that choose the epoch to keep."""
    parser.fields(
        "training",
        options,
        monitor=f"validation score by which the best epoch is kept: {', '.join(options.SCORES)}; default: the first",
        patience="stop after this number of epochs without a better score; default: never",
    )


def add_hardware(parser: CommandParser, options: Any, workers: str = "number of processes that decode images") -> None:
    """Add the options of the processes and of their devices; `workers` is a help text."""
    parser.fields(
        "hardware",
        options,
        device="device",
        devices="processes per machine, one per GPU; omit with torchrun",
        nodes="number of machines, each with --devices processes",
        workers=workers,
    )


def add_images(parser: CommandParser, text: str) -> None:
    """Add the images to process, as arguments and as the option --list; see :func:`read_names`."""
    parser.option("data", "images", f"{text}; - reads one path per line from standard input", nargs="+")
    next(action for action in parser._actions if action.dest == "images").required = False
    text = "file of images: one path per line, or CSV with the column path; paths are relative to the file"
    parser.option("data", "--list", text, type=str | None, metavar="FILE")


def read_names(arguments: Namespace) -> list[str]:
    """Return the names of images and folders given as arguments, on standard input and in the file of --list.

    Raises:
        ValueError: there are none.
    """
    from sppnet.data.listing import read_list

    given = arguments.images or []
    if not given and not arguments.list:
        raise ValueError("images: expected files or folders, - for standard input, or --list FILE, got none")
    names = [name for text in given for name in (read_list(None) if text == "-" else [text])]
    return names + (read_list(Path(arguments.list)) if arguments.list else [])


def find_images(names: Sequence[str]) -> tuple[list[Path], list[ImageError]]:
    """List the images among files and folders, and an error for each name without an image.

    Other files in the folders are reported on standard error, one line per extension.
    """
    from sppnet.data.images import image_extensions
    from sppnet.data.listing import list_images, walk_files

    extensions = image_extensions()
    for folder in map(Path, filter(os.path.isdir, dict.fromkeys(names))):
        skipped: dict[str, list[Path]] = {}
        for file in walk_files(folder):
            if (extension := file.suffix.lower()) not in extensions:
                skipped.setdefault(extension, []).append(file)
        for extension, files in skipped.items():
            text = f"skipped, not an image by its extension: {files[0]}"
            more = f" and {len(files) - 1} more with {extension or 'no extension'}" if len(files) > 1 else ""
            message(text + more)
    return collect_images(names, list_images)


def collect_images(names: Sequence[str], list_one: Callable[[str], Sequence[T]]) -> tuple[list[T], list[ImageError]]:
    """Concatenate what `list_one` returns for each name, and collect the errors of names that it rejects.

    Repeated paths are used once, which is reported on standard error.
    """
    items: list[T] = []
    failures: dict[str, ImageError] = {}
    for name in names:
        try:
            items += list_one(name)
        except ImageError as error:
            failures[name] = error
    unique: dict[str, T] = {}
    for item in items:
        unique.setdefault(os.path.abspath(str(item)), item)  # noqa: PTH100
    if repeated := len(items) - len(unique):
        message(f"{repeated} repeated image{'s' * (repeated != 1)} skipped")
    return list(unique.values()), list(failures.values())


def print_comparison(
    content: dict[str, Any], tables: Callable[[Any], Sequence[Table]], out: Path, as_json: bool
) -> None:
    """Print the results of a comparison as JSON or as tables.

    Args:
        content: results, as in comparison.json.
        tables: function that formats the results as tables.
        out: folder of comparison.json, printed after the tables.
        as_json: whether to print one JSON object and nothing else on standard output.
    """
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
        return
    for table in tables(content):
        results.print(table)
    message(f"results written to {out / 'comparison.json'}")


def list_failures(failures: Sequence[ImageError]) -> None:
    """List unusable images on standard error."""
    if failures:
        message(f"{len(failures)} image{'s' * (len(failures) != 1)} could not be used:")
        for failure in failures:
            message(f"  {failure}")


def list_problems(problems: Sequence[str], failures: Sequence[ImageError]) -> None:
    """List problems of a data set and unusable images on standard error."""
    for problem in problems:
        message(problem)
    list_failures(failures)


def print_row(*values: object) -> None:
    """Print a row of CSV on standard output, with escapes for control characters."""
    csv.writer(sys.stdout, lineterminator="\n").writerow([printable(str(value)) for value in values])


def print_error(text: str) -> None:
    """Print one line on standard error, prefixed with the program name."""
    message(f"sppnet: {text}")


def _as_text(value: object) -> str:
    """Return the text of an option value; a number in a YAML file is not one."""
    return str(value)
