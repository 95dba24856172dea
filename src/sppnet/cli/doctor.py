"""`sppnet doctor`: test the installation on this machine, or a network with padded batches."""

import json
import math
import platform
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from jsonargparse import Namespace
from rich.markup import escape
from rich.table import Table

from sppnet import __version__
from sppnet.cli.console import console, line, results
from sppnet.cli.parser import CommandParser

if TYPE_CHECKING:
    from sppnet.tools.doctor import PaddingReport
    from sppnet.tools.environment import Package
    from sppnet.tools.selftest import Result

_PADDING_OPTIONS = {"stage": None, "weights": "none", "batch": 32}


def doctor_parser() -> CommandParser:
    """Build the argument parser of `sppnet doctor`."""
    parser = CommandParser(
        "doctor",
        "Print versions, devices and weights, and test the operators on this machine: every device and dtype against a"
        " float64 reference, torch.compile and ONNX if installed. The exit code is 1 if an operator is wrong or the"
        " embedded weights are damaged. With --backbone, test instead whether a network gives images in one padded"
        " batch the same feature maps as single images. The exit code is then 1 if the network has an unsupported layer"
        " or the largest relative difference exceeds 1e-5 (1e-9 in float64).",
    )
    text = "timm network, or zf5, convnet5, overfeat5, overfeat7; default: test the operators"
    parser.option("model", "--backbone", text, type=str | None)
    text = "--backbone: feature map, 0 (finest) to -1 (coarsest); default: the last"
    parser.option("model", "--stage", text, type=int | None)
    text = "--backbone: none (random), auto, hub (timm download), or a file"
    parser.option("model", "--weights", text, _PADDING_OPTIONS["weights"])
    text = "--backbone: number of images of different sizes in the batch"
    parser.option("data", "--batch", text, _PADDING_OPTIONS["batch"], type=int)
    text = "cpu, cuda, mps or auto (all devices, or the first GPU with --backbone)"
    parser.option("hardware", "--device", text, "auto")
    text = "print one JSON object and nothing else on standard output"
    parser.option("output", "--json", text, False, action="store_true")
    return parser


def doctor(arguments: Namespace) -> int:
    """Test the installation or a network, print the results, and return 0, or 1 if a test failed."""
    if arguments.backbone is not None:
        return _test_padding(arguments)
    for name, default in _PADDING_OPTIONS.items():
        if arguments[name] != default:
            raise ValueError(f"{name}: expected no value without --backbone, got {arguments[name]}")
    import torch

    from sppnet.devices import pick_device
    from sppnet.tools import environment, selftest

    devices = environment.devices()
    if arguments.device != "auto":
        chosen = pick_device(arguments.device)
        name = f"cuda:{chosen.index or 0}" if chosen.type == "cuda" else chosen.type
        devices = tuple(device for device in devices if device.name == name)
    with console.status("checking packages and weights"):
        packages, weights = environment.packages(), environment.weights()
    tests = selftest.check_all([torch.device(device.name) for device in devices])
    ok = not any(test.wrong for test in tests) and not any(file.problem for file in weights)
    if arguments.json:
        content = {
            "sppnet": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {extra or "base": list(map(asdict, own)) for extra, own in packages.items()},
            "devices": [asdict(device) for device in devices],
            "weights": [asdict(file) for file in weights],
            "tests": [asdict(test) for test in tests],
            "ok": ok,
        }
        sys.stdout.write(json.dumps(content) + "\n")
        return 0 if ok else 1
    line(f"sppnet {__version__}, Python {platform.python_version()}, {platform.platform()}")
    _print_packages(packages)
    for device in devices:
        line(f"{device.name}: {device.model}, {device.memory / 2**30:.1f} GB; {device.details}")
    for file in weights:
        state = "DAMAGED" if file.problem else f"{file.bytes / 1e6:.1f} MB"
        line(f"weights, {file.source}: {file.name}, {state}")
    _print_tests(tests)
    for problem in (file.problem for file in weights if file.problem):
        line(f"DAMAGED: {problem}")
    line("all checks passed" if ok else "some checks failed; see above")
    return 0 if ok else 1


def _print_packages(packages: dict[str, tuple["Package", ...]]) -> None:
    table = Table("extra", "packages", "install with")
    for extra, own in packages.items():
        command = f'pip install ".[{extra}]"' if extra else "pip install ."
        names = [
            f"{package.name} {package.version or 'missing'}"
            + (f" (needs {package.needed})" if package.version and not package.usable else "")
            for package in own
        ]
        missing = not all(package.usable for package in own)
        table.add_row(extra or "base", escape(", ".join(names)), escape(command) if missing else "")
    results.print(table)


def _print_tests(tests: list["Result"]) -> None:
    table = Table("test", "device", "dtype", "implementation", "cases", "result")
    for test in tests:
        result = f"{test.wrong} FAILED" if test.wrong else "passed" if test.cases else escape(test.note)
        table.add_row(test.test, test.device, test.dtype, test.served, str(test.cases), result)
    results.print(table)
    for test in tests:
        if test.wrong:
            line(f"FAILED: {test.test}, {test.device}, {test.dtype}: {test.note}")


def _test_padding(arguments: Namespace) -> int:
    """Compare a padded batch with single images and return 0, or 1 if they differ or the network is refused."""
    from sppnet.devices import pick_device
    from sppnet.tools.doctor import BOUND, check_padding

    device = str(pick_device(arguments.device))
    with console.status(f"{arguments.batch} images of different sizes, in one batch and one by one"):
        report = check_padding(arguments.backbone, arguments.stage, arguments.weights, arguments.batch, device)
    if arguments.json:
        values = {**asdict(report), "exact": report.exact, "bound": BOUND}
        finite = {name: None if value == math.inf else value for name, value in values.items()}  # JSON has no infinity
        sys.stdout.write(json.dumps(finite) + "\n")
    else:
        line(_padding_line(report))
    return 0 if report.exact else 1


def _padding_line(report: "PaddingReport") -> str:
    from sppnet.tools.doctor import BOUND, DOUBLE_BOUND

    if report.difference is None or report.worst is None or report.naive is None:
        return f"{report.backbone}: refused. {report.refused}"
    height, width = report.worst
    return (
        f"{report.backbone}: {'exact' if report.exact else 'NOT exact'}. {len(report.sizes)} images of different sizes,"
        f" padded batch against single images: largest relative difference {report.difference:.1e} at"
        f" {height} x {width} pixels (height x width; bound {BOUND:g}); without clearing of the padding"
        f" {report.naive:.1e}"
        + (f"; in float64 {report.double:.1e} (bound {DOUBLE_BOUND:g})" if report.double is not None else "")
    )
