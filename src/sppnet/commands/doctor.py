"""`sppnet doctor`: whether a network does on this machine what it is to do."""

import dataclasses
import json
import math
import sys

from jsonargparse import ArgumentParser, Namespace

from sppnet.console import console, results
from sppnet.doctor import BOUND, DOUBLE_BOUND, PaddingReport, check_padding
from sppnet.runs import pick_device


def doctor_parser() -> ArgumentParser:
    """Options of `sppnet doctor`."""
    parser = ArgumentParser(
        description="Test whether images of different sizes in one padded batch get the answers from a network that"
        f" they get alone. Exit code 1 where the largest difference is above {BOUND:g} of the largest value, in float64"
        f" above {DOUBLE_BOUND:g}, or where the network has a layer for which it cannot be had, which is named."
    )
    add = parser.add_argument
    add("--backbone", required=True, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add("--stage", type=int | None, help="feature map of the backbone: 0 the finest, -1 the coarsest; left out: last")
    add("--weights", default="none", help="none (random), auto, hub (downloads timm's), or a safetensors file")
    add("--images", type=int, default=32, help="images of different sizes in the batch")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def doctor(arguments: Namespace) -> int:
    """Test, and print the largest difference; 1 where the answers differ or the network was refused."""
    device = str(pick_device(arguments.device))
    with console.status(f"{arguments.images} images of different sizes in one batch, and one by one"):
        report = check_padding(arguments.backbone, arguments.stage, arguments.weights, arguments.images, device)
    if arguments.json:
        values = {**dataclasses.asdict(report), "exact": report.exact, "bound": BOUND}
        finite = {name: None if value == math.inf else value for name, value in values.items()}  # JSON has no infinity
        sys.stdout.write(json.dumps(finite) + "\n")
    else:
        results.print(_line(report), highlight=False, soft_wrap=True, markup=False)
    return 0 if report.exact else 1


def _line(report: PaddingReport) -> str:
    if report.difference is None or report.worst is None or report.naive is None:
        return f"{report.backbone}: refused. {report.refused}"
    height, width = report.worst
    return (
        f"{report.backbone}: {'exact' if report.exact else 'NOT exact'}. {len(report.sizes)} images of different sizes"
        f" in one batch against one by one: largest difference {report.difference:.1e} of the largest value, at"
        f" {height} x {width} (bound {BOUND:g}); with padding left as it comes it is {report.naive:.1e}"
        + (f"; in float64 it is {report.double:.1e} (bound {DOUBLE_BOUND:g})" if report.double is not None else "")
    )
