"""`sppnet export` and `sppnet verify`: export a run to ONNX and compare the file with the run."""

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
    """Build the argument parser of `sppnet export`."""
    parser = ArgumentParser(
        description="Export a classifier to an ONNX file that accepts images of any size. The file is compared with"
        " the run in onnxruntime and written only if they agree."
    )
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network")
    add("--out", required=True, metavar="FILE.onnx", help="output file; an existing file is replaced")
    add("--with-preprocessing", action="store_true", help="accept uint8 pixels (N, H, W, 3) and normalize in the graph")
    add("--regions", action="store_true", help="export pooling of boxes on a feature map, not the classifier")
    add("--levels", type=str | None, help="--regions: pyramid levels, such as 6,3,2,1; default: those of the run")
    add("--sizes", type=int, default=50, help="number of random image sizes to check")
    return parser


def verify_parser() -> ArgumentParser:
    """Build the argument parser of `sppnet verify`."""
    parser = ArgumentParser(
        description="Compare an ONNX file with its run at random image sizes and report the sizes at which they differ."
    )
    add = parser.add_argument
    add("file", help="file written by `sppnet export`")
    add("run", help="run folder of the exported model, or imagenet")
    add("--sizes", type=int, default=200, help="number of random image sizes")
    add("--seed", type=int, default=0, help="random seed of sizes, images and boxes")
    add("--tolerance", type=float, default=1e-4, help="largest allowed difference, relative to the largest output")
    add("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def export(arguments: Namespace) -> int:
    """Write and verify the file, and return 0."""
    from sppnet.export.models import export_classifier, export_regions

    if arguments.levels and not arguments.regions:
        raise ValueError(f"levels: expected no value without --regions, got {arguments.levels}")
    if arguments.with_preprocessing and arguments.regions:
        raise ValueError("with-preprocessing: expected images as input, got --regions, which takes feature maps")
    levels = parse_level_text(arguments.levels) if arguments.levels else None
    model, out = load_classifier(arguments.run), Path(arguments.out)
    if arguments.regions:
        report = export_regions(model, out, levels, sizes=arguments.sizes)
    else:
        report = export_classifier(model, out, arguments.with_preprocessing, sizes=arguments.sizes)
    _print(report)
    return 0


def check(arguments: Namespace) -> int:
    """Compare the file with the run and return 0, or 1 if they differ at any size."""
    model = load_classifier(arguments.run)
    report = verify(arguments.file, model, arguments.sizes, arguments.seed, arguments.tolerance)
    if arguments.json:
        sys.stdout.write(json.dumps(_json_content(report)) + "\n")
    else:
        _print(report)
    return 1 if report.mismatches else 0


def _json_content(report: Verification) -> dict[str, object]:
    """Replace infinite numbers, which JSON does not have, by None."""
    content = dataclasses.asdict(report)
    for part in (content, *content["mismatches"]):
        for name in ("worst", "error"):
            if math.isinf(part.get(name, 0.0)):
                part[name] = None
    return content


def _print(report: Verification) -> None:
    table = Table("file", "task", "sizes", "mismatches", "largest difference", "at")
    worst_size = f"{report.worst_size[0]} x {report.worst_size[1]}"
    count = str(len(report.mismatches))
    table.add_row(escape(report.file), report.task, str(report.sizes), count, f"{report.worst:.1e}", worst_size)
    results.print(table)
    if report.mismatches:
        failed = Table("size", "images", "problem", title=f"differences above {report.tolerance:.0e}")
        for mismatch in report.mismatches:
            size = f"{mismatch.size[0]} x {mismatch.size[1]}"
            failed.add_row(size, str(mismatch.images), escape(mismatch.reason))
        results.print(failed)
