"""`sppnet check`: decode every file of a data set and report its problems."""

import json
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from rich.markup import escape
from rich.table import Table

from sppnet.cli.common import add_format
from sppnet.cli.console import line, message, results
from sppnet.cli.parser import CommandParser
from sppnet.errors import printable

if TYPE_CHECKING:
    from sppnet.data.check.run import Check

PICTURE, SAMPLES = "samples.png", 24
MAX_ROWS = 60  # of the table of classes


def check_dataset_parser() -> CommandParser:
    """Build the argument parser of `sppnet check`."""
    parser = CommandParser(
        "check",
        "Decode every file of a data set, list the problems, and count the examples of each class. The formats are"
        " detected, see --format, and read as for training; a folder of images needs no annotations. The exit code is"
        " 1 if there is an error or a warning.",
    )
    parser.option("data", "data", "folder or file, as for training")
    add_format(parser)
    parser.option("hardware", "--workers", "number of images decoded in parallel", 2, type=int)
    text = "print one JSON object and nothing else on standard output"
    parser.option("output", "--json", text, False, action="store_true")
    text = f"output folder of {PICTURE}, a picture of up to {SAMPLES} images with their labels"
    parser.option("output", "--pictures", text, type=str | None, metavar="DIR")
    return parser


def check_dataset(arguments: Namespace) -> int:
    """Check a data set and return 1 if it has errors or warnings, else 0."""
    from sppnet.data.check.run import check_data

    check = check_data(arguments.data, arguments.workers, arguments.format)
    if arguments.pictures:
        from sppnet.inference.samples import draw_samples

        Path(arguments.pictures).mkdir(parents=True, exist_ok=True)
        file = Path(arguments.pictures) / PICTURE
        draw_samples(check.entries, SAMPLES).save(file)
        message(f"{file} shows images with their labels")
    if arguments.json:
        sys.stdout.write(json.dumps(_json_content(check)) + "\n")
    else:
        _print(check)
    return 0 if all(problem.severity == "note" for problem in check.problems) else 1


def _json_content(check: "Check") -> dict[str, Any]:
    from sppnet.data.check.report import BATCH, histograms, ranges, suggest_training

    sides, aspects = histograms(check.sizes)
    suggested = suggest_training(check.sizes)
    problems = [
        {"path": str(problem.path), "kind": problem.kind, "severity": problem.severity, "reason": problem.reason}
        for problem in check.problems
    ]
    return {
        "data": str(check.root),
        "layout": check.layout,
        "images": check.images,
        "usable": len(check.sizes),
        "problems": problems,
        "counts": check.counts,
        "classes": [
            {"class": count.name, **{key: getattr(count, key) for key in ("split", "images", "boxes", "pixels")}}
            for count in check.classes
        ],
        "sizes": {name: part._asdict() for name, part in ranges(check.sizes).items()},
        "shorter_side": sides,
        "aspect": aspects,
        "suggestions": {
            "batch": BATCH,
            "buckets": [bucket._asdict() for bucket in suggested.buckets],
            "padding_random_order": suggested.waste_random,
            "padding_like_shape": suggested.waste_sorted,
        },
    }


def _print(check: "Check") -> None:
    line(f"{check.root}: {check.layout}, {check.images} images, {len(check.sizes)} of them usable")
    for (severity, kind), problems in groupby(check.problems, lambda problem: (problem.severity, problem.kind)):
        listed = list(problems)
        line(f"\n{severity}: {kind} ({len(listed)})")
        for problem in listed:
            line(f"  {problem}")
    if check.classes:
        line("")
        _print_classes(check)
    if check.sizes:
        line("")
        _print_sizes(check)
    severities = Counter(problem.severity for problem in check.problems)
    totals = [f"{severities[name]} {name}s" for name in ("error", "warning", "note")]
    line(f"\n{', '.join(totals)}")


def _print_classes(check: "Check") -> None:
    """Print a row for each class, with columns for each split."""
    kinds = [kind for kind in ("images", "boxes", "pixels") if any(getattr(count, kind) for count in check.classes)]
    splits = list(dict.fromkeys(count.split for count in check.classes))
    rows: dict[str, dict[tuple[str | None, str], str]] = {}
    for count in check.classes:
        rows.setdefault(count.name, {}).update({(count.split, kind): str(getattr(count, kind)) for kind in kinds})
    columns = [(split, kind) for split in splits for kind in kinds]
    table = Table("class", *(escape(f"{split} {kind}" if split else kind) for split, kind in columns))
    for name in list(rows)[:MAX_ROWS]:
        table.add_row(escape(printable(name)), *(rows[name].get(column, "0") for column in columns))
    results.print(table)
    if len(rows) > MAX_ROWS:
        line(f"and {len(rows) - MAX_ROWS} more classes; --json lists all")


def _print_sizes(check: "Check") -> None:
    from sppnet.data.check.report import BATCH, histograms, ranges, suggest_training

    table = Table("pixels", "minimum", "median", "maximum")
    for name, part in ranges(check.sizes).items():
        table.add_row(name, *(f"{value:g}" for value in part))
    results.print(table)
    for counts in histograms(check.sizes):
        table = Table("group", "images", "%")
        for name, count in counts.items():
            table.add_row(name, str(count), f"{100 * count / len(check.sizes):.1f}")
        results.print(table)
    suggested = suggest_training(check.sizes)
    table = Table("bucket", "images", "median height x width", "largest height x width")
    for number, bucket in enumerate(suggested.buckets, start=1):
        sizes = (f"{height} x {width}" for height, width in (bucket.size, bucket.canvas))
        table.add_row(str(number), str(bucket.images), *sizes)
    results.print(table)
    line(
        f"Padding in batches of {BATCH}: {100 * suggested.waste_random:.1f} % of the pixels in random order,"
        f" {100 * suggested.waste_sorted:.1f} % with images grouped by shape (--sizes native)."
    )
