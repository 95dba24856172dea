"""`sppnet check`: decode every file of a data set and report its problems."""

import json
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from rich.table import Table

from sppnet.cli.console import line, results
from sppnet.cli.parser import CommandParser

if TYPE_CHECKING:
    from sppnet.data.check.run import Check


def check_dataset_parser() -> CommandParser:
    """Build the argument parser of `sppnet check`."""
    parser = CommandParser(
        "check",
        "Decode every file of a data set and list the problems. The layout is detected: class folders, splits of class"
        " folders, a CSV file with path,label, VOC, COCO, images with masks, or a folder of images. The exit code is 1"
        " if there is an error or a warning.",
    )
    parser.option("data", "data", "folder, .csv file or .json file, as for training")
    parser.option("hardware", "--workers", "number of images decoded in parallel", 2, type=int)
    text = "print one JSON object and nothing else on standard output"
    parser.option("output", "--json", text, False, action="store_true")
    return parser


def check_dataset(arguments: Namespace) -> int:
    """Check a data set and return 1 if it has errors or warnings, else 0."""
    from sppnet.data.check.run import check_data

    check = check_data(arguments.data, arguments.workers)
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
            line(f"  {problem.path}: {problem.reason}")
    if check.sizes:
        line("")
        _print_sizes(check)
    severities = [problem.severity for problem in check.problems]
    totals = [f"{severities.count(name)} {name}s" for name in ("error", "warning", "note")]
    line(f"\n{', '.join(totals)}")


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
