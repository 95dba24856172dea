"""`sppnet export` and `sppnet verify`: a run as an ONNX file, and the proof that the file is right."""

import dataclasses
import json
import math
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.markup import escape
from rich.table import Table

from sppnet.cli.common import parse_level_text
from sppnet.console import results
from sppnet.export.verify import Verification, verify
from sppnet.registry import load_classifier


def export_parser() -> ArgumentParser:
    """Options of `sppnet export`."""
    parser = ArgumentParser(
        description="Write a run as an ONNX file that takes images of every size. The file is compared with the run"
        " in onnxruntime and appears only if it is right."
    )
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network")
    add("--out", required=True, metavar="FILE.onnx", help="the file; one that is there is replaced")
    add("--with-preprocessing", action="store_true", help="take uint8 pixels (N, H, W, 3); scaling is in the file")
    add("--regions", action="store_true", help="write the pyramid of boxes of a feature map, not the classifier")
    add("--levels", type=str | None, help="levels of --regions, such as 6,3,2,1; left out: the run's own")
    add("--sizes", type=int, default=50, help="number of sizes at which the file is checked")
    return parser


def verify_parser() -> ArgumentParser:
    """Options of `sppnet verify`."""
    parser = ArgumentParser(
        description="Compare an ONNX file with its run at sizes drawn anew, and say at which sizes they differ."
    )
    add = parser.add_argument
    add("file", help="file that `sppnet export` wrote")
    add("run", help="run folder that it was made from, or imagenet")
    add("--sizes", type=int, default=200, help="number of sizes")
    add("--seed", type=int, default=0, help="of sizes, images and boxes")
    add("--tolerance", type=float, default=1e-4, help="largest difference, relative to the largest number of the run")
    add("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def export(arguments: Namespace) -> int:
    """Write the file, checked."""
    from sppnet.export.models import export_classifier, export_regions

    if arguments.levels and not arguments.regions:
        raise ValueError("levels: a classifier has those that it was trained with; --levels is for --regions")
    if arguments.with_preprocessing and arguments.regions:
        raise ValueError("with-preprocessing: --regions takes feature maps, not images; leave one of the two out")
    levels = parse_level_text(arguments.levels) if arguments.levels else None
    model, out = load_classifier(arguments.run), Path(arguments.out)
    if arguments.regions:
        report = export_regions(model, out, levels, sizes=arguments.sizes)
    else:
        report = export_classifier(model, out, arguments.with_preprocessing, sizes=arguments.sizes)
    _print(report)
    return 0


def check(arguments: Namespace) -> int:
    """Compare file and run; 1 if they differ anywhere."""
    model = load_classifier(arguments.run)
    report = verify(arguments.file, model, arguments.sizes, arguments.seed, arguments.tolerance)
    if arguments.json:
        sys.stdout.write(json.dumps(_content(report)) + "\n")
    else:
        _print(report)
    return 1 if report.mismatches else 0


def _content(report: Verification) -> dict[str, object]:
    """For JSON, which knows no infinite numbers."""
    content = dataclasses.asdict(report)
    for part in (content, *content["mismatches"]):
        for name in ("worst", "error"):
            if math.isinf(part.get(name, 0.0)):
                part[name] = None
    return content


def _print(report: Verification) -> None:
    table = Table("file", "what", "sizes", "wrong", "worst difference", "at")
    worst_size = f"{report.worst_size[0]} x {report.worst_size[1]}"
    wrong = str(len(report.mismatches))
    table.add_row(escape(report.file), report.task, str(report.sizes), wrong, f"{report.worst:.1e}", worst_size)
    results.print(table)
    if report.mismatches:
        failed = Table("size", "images", "what is wrong", title=f"wrong by more than {report.tolerance:.0e}")
        for one in report.mismatches:
            failed.add_row(f"{one.size[0]} x {one.size[1]}", str(one.images), escape(one.reason))
        results.print(failed)
