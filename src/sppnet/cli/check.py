"""`sppnet check`: one look at every file of a data set."""

import json
import sys
from itertools import groupby
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from sppnet.console import results
from sppnet.data.check.items import KINDS
from sppnet.data.check.report import BATCH, histograms, ranges, suggest_training
from sppnet.data.check.run import Check, check_data


def check_parser() -> ArgumentParser:
    """Options of `sppnet check`."""
    parser = ArgumentParser(
        description="Look once at every file of a data set and name what is wrong. Its layout is recognised: class"
        " folders, splits of them, CSV with path,label; VOC, COCO; images with masks; or a folder of images. Exit code"
        " 1 if there is an error or a warning."
    )
    parser.add_argument("data", help="folder, .csv or .json file, as for training")
    parser.add_argument("--workers", type=int, default=2, help="images decoded at a time")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def check_dataset(arguments: Namespace) -> int:
    """Check a data set; 1 if anything but notes is found."""
    found = check_data(arguments.data, arguments.workers)
    if arguments.json:
        sys.stdout.write(json.dumps(_content(found)) + "\n")
    else:
        _print(found)
    return 0 if all(KINDS[kind] == "note" for kind in found.counts) else 1


def _content(found: Check) -> dict[str, Any]:
    sides, aspects = histograms(found.sizes)
    suggested = suggest_training(found.sizes)
    problems = [
        {"path": str(one.path), "kind": one.kind, "severity": one.severity, "reason": one.reason}
        for one in found.problems
    ]
    return {
        "data": str(found.root),
        "layout": found.layout,
        "images": found.images,
        "usable": len(found.sizes),
        "problems": problems,
        "counts": found.counts,
        "sizes": {name: part._asdict() for name, part in ranges(found.sizes).items()},
        "shorter_side": sides,
        "aspect": aspects,
        "suggestions": {
            "batch": BATCH,
            "buckets": [bucket._asdict() for bucket in suggested.buckets],
            "padding_random_order": suggested.waste_random,
            "padding_like_shape": suggested.waste_sorted,
        },
    }


def _print(found: Check) -> None:
    _line(f"{found.root}: {found.layout}, {found.images} images, {len(found.sizes)} of them usable")
    for kind, problems in groupby(found.problems, lambda problem: problem.kind):
        one = list(problems)
        _line(f"\n{KINDS[kind]}: {kind} ({len(one)})")
        for problem in one:
            _line(f"  {problem.path}: {problem.reason}")
    if found.sizes:
        _line("")
        _print_sizes(found)
    severities = [problem.severity for problem in found.problems]
    told = [f"{severities.count(name)} {name}s" for name in ("error", "warning", "note")]
    _line(f"\n{', '.join(told)}")


def _print_sizes(found: Check) -> None:
    table = Table("pixels", "least", "median", "greatest")
    for name, part in ranges(found.sizes).items():
        table.add_row(name, *(f"{value:g}" for value in part))
    results.print(table)
    for counts in histograms(found.sizes):
        table = Table("images of", "number", "%")
        for name, count in counts.items():
            table.add_row(name, str(count), f"{100 * count / len(found.sizes):.1f}")
        results.print(table)
    suggested = suggest_training(found.sizes)
    table = Table("bucket", "images", "median height x width", "greatest")
    for number, bucket in enumerate(suggested.buckets, start=1):
        sizes = (f"{height} x {width}" for height, width in (bucket.size, bucket.canvas))
        table.add_row(str(number), str(bucket.images), *sizes)
    results.print(table)
    _line(
        f"Padding in batches of {BATCH}: {100 * suggested.waste_random:.1f} % of the pixels in random order,"
        f" {100 * suggested.waste_sorted:.1f} % where images of like shape meet (--sizes native)."
    )


def _line(text: str) -> None:
    results.print(text, highlight=False, soft_wrap=True, markup=False)
