"""`sppnet export` and `sppnet verify`: export a run to ONNX and compare the file with the run."""

import json
import sys
from typing import TYPE_CHECKING

from jsonargparse import Namespace
from rich.markup import escape
from rich.table import Table

from sppnet.cli.console import results
from sppnet.cli.parser import CommandParser, levels, optional

if TYPE_CHECKING:
    from sppnet.export.verify import Verification


def export_parser() -> CommandParser:
    """Build the argument parser of `sppnet export`."""
    parser = CommandParser(
        "export",
        "Export a classifier to an ONNX file that accepts images of any size. The file is compared with the run in"
        " onnxruntime and written only if they agree.",
    )
    option = parser.option
    option("model", "run", "run folder, or imagenet for the embedded network")
    text = "accept uint8 pixels (N, H, W, 3) and normalize in the graph"
    option("model", "--with-preprocessing", text, False, action="store_true")
    text = "export pooling of boxes on a feature map, not the classifier"
    option("model", "--regions", text, False, action="store_true")
    text = "--regions: pyramid levels, such as 6,3,2,1; default: those of the run"
    option("model", "--levels", text, type=optional(levels))
    option("output", "--out", "output file; an existing file is replaced", required=True, metavar="FILE.onnx")
    option("verification", "--num-sizes", "number of random image sizes to check", 50, type=int)
    return parser


def verify_parser() -> CommandParser:
    """Build the argument parser of `sppnet verify`."""
    parser = CommandParser(
        "verify",
        "Compare an ONNX file with its run at random image sizes and report the sizes at which they differ.",
    )
    option = parser.option
    option("model", "file", "file written by `sppnet export`")
    option("model", "run", "run folder of the exported model, or imagenet")
    option("verification", "--num-sizes", "number of random image sizes", 200, type=int)
    option("verification", "--seed", "random seed of sizes, images and boxes", 0, type=int)
    text = "largest allowed difference, relative to the largest output"
    option("verification", "--tolerance", text, 1e-4, type=float)
    text = "print one JSON object and nothing else on standard output"
    option("output", "--json", text, False, action="store_true")
    return parser


def export(arguments: Namespace) -> int:
    """Write and verify the file, and return 0."""
    from sppnet.export.models import export_classifier, export_regions
    from sppnet.registry import load_classifier

    if arguments.levels and not arguments.regions:
        raise ValueError(f"levels: expected no value without --regions, got {arguments.levels}")
    if arguments.with_preprocessing and arguments.regions:
        raise ValueError("with_preprocessing: expected images as input, got --regions, which takes feature maps")
    model = load_classifier(arguments.run)
    if arguments.regions:
        report = export_regions(model, arguments.out, arguments.levels, num_sizes=arguments.num_sizes)
    else:
        report = export_classifier(model, arguments.out, arguments.with_preprocessing, num_sizes=arguments.num_sizes)
    _print(report)
    return 0


def verify(arguments: Namespace) -> int:
    """Compare the file with the run and return 0, or 1 if they differ at any size."""
    from sppnet.export.verify import verify
    from sppnet.registry import load_classifier

    model = load_classifier(arguments.run)
    report = verify(arguments.file, model, arguments.num_sizes, arguments.seed, arguments.tolerance)
    if arguments.json:
        sys.stdout.write(json.dumps(report.to_dict()) + "\n")
    else:
        _print(report)
    return 1 if report.mismatches else 0


def _print(report: "Verification") -> None:
    table = Table("file", "task", "sizes", "mismatches", "largest difference", "height x width")
    worst_size = f"{report.worst_size[0]} x {report.worst_size[1]}"
    count = str(len(report.mismatches))
    table.add_row(escape(report.file), report.task, str(report.sizes), count, f"{report.worst:.1e}", worst_size)
    results.print(table)
    if report.mismatches:
        failed = Table("height x width", "images", "problem", title=f"differences above {report.tolerance:.0e}")
        for mismatch in report.mismatches:
            size = f"{mismatch.size[0]} x {mismatch.size[1]}"
            failed.add_row(size, str(mismatch.images), escape(mismatch.reason))
        results.print(failed)
