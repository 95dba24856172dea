"""`sppnet doctor`: test the installation on this machine, or a network with padded batches."""

import dataclasses
import json
import math
import platform
import sys

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.markup import escape
from rich.table import Table

from sppnet import __version__
from sppnet.console import console, results, track
from sppnet.devices import pick_device
from sppnet.tools import environment, selftest
from sppnet.tools.doctor import BOUND, DOUBLE_BOUND, PaddingReport, check_padding

_PADDING_OPTIONS = {"stage": None, "weights": "none", "images": 32}


def doctor_parser() -> ArgumentParser:
    """Build the argument parser of `sppnet doctor`."""
    parser = ArgumentParser(
        description="Print versions, devices and weights, and test the operators on this machine: every device and"
        " dtype against a float64 reference, torch.compile and ONNX if installed. The exit code is 1 if an operator is"
        " wrong or the embedded weights are damaged. With --backbone, test instead whether a network gives images in"
        " one padded batch the same feature maps as single images. The exit code is then 1 if the network has an"
        f" unsupported layer or the largest relative difference exceeds {BOUND:g} ({DOUBLE_BOUND:g} in float64)."
    )
    add = parser.add_argument
    add("--backbone", type=str | None, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add("--stage", type=int | None, help="--backbone: feature map, 0 (finest) to -1 (coarsest)")
    add("--weights", default="none", help="--backbone: none (random), auto, hub (timm download), or a file")
    add("--images", type=int, default=32, help="--backbone: number of images of different sizes in the batch")
    add("--device", default="auto", help="cpu, cuda, mps or auto (all devices, or the first GPU with --backbone)")
    add("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def doctor(arguments: Namespace) -> int:
    """Test the installation or a network, print the results, and return 0, or 1 if a test failed."""
    if arguments.backbone is not None:
        return _test_padding(arguments)
    for name, default in _PADDING_OPTIONS.items():
        if arguments[name] != default:
            raise ValueError(f"{name}: expected no value without --backbone, got {arguments[name]}")
    devices = environment.devices()
    if arguments.device != "auto":
        name = _with_index(pick_device(arguments.device))
        devices = tuple(device for device in devices if device.name == name)
    with console.status("checking packages and weights"):
        packages, weights = environment.packages(), environment.weights()
    tests = _test([torch.device(device.name) for device in devices])
    ok = not any(test.wrong for test in tests) and not any(file.problem for file in weights)
    if arguments.json:
        content = {
            "sppnet": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {extra or "base": list(map(dataclasses.asdict, own)) for extra, own in packages.items()},
            "devices": [dataclasses.asdict(device) for device in devices],
            "weights": [dataclasses.asdict(file) for file in weights],
            "tests": [dataclasses.asdict(test) for test in tests],
            "ok": ok,
        }
        sys.stdout.write(json.dumps(content) + "\n")
        return 0 if ok else 1
    _print_line(f"sppnet {__version__}, Python {platform.python_version()}, {platform.platform()}")
    _print_packages(packages)
    for device in devices:
        memory = f", {device.memory / 2**30:.1f} GB" if device.memory else ""
        _print_line(f"{device.name}: {device.model}{memory}; {device.details}")
    for file in weights:
        state = "DAMAGED" if file.problem else f"{file.bytes / 1e6:.1f} MB"
        _print_line(f"weights, {file.source}: {file.name}, {state}")
    _print_tests(tests)
    for problem in (file.problem for file in weights if file.problem):
        _print_line(f"DAMAGED: {problem}")
    _print_line("all checks passed" if ok else "some checks failed; see above")
    return 0 if ok else 1


def _with_index(device: torch.device) -> str:
    return f"cuda:{device.index or 0}" if device.type == "cuda" else device.type


def _test(devices: list[torch.device]) -> list[selftest.Result]:
    cases = selftest.cases()
    tests = selftest.check_operators(devices, track(cases, "operators, compiled on first use", len(cases)))
    for device in devices:
        with console.status(f"torch.compile on {device}"):
            tests.append(selftest.check_compiled(device))
    with console.status("ONNX"):
        tests.append(selftest.check_onnx())
    return tests


def _print_line(line: str) -> None:
    results.print(line, highlight=False, soft_wrap=True, markup=False)


def _print_packages(packages: dict[str, tuple[environment.Package, ...]]) -> None:
    table = Table("extra", "packages", "install with")
    for extra, own in packages.items():
        command = 'pip install "sppnet' + (f'[{extra}]"' if extra else '"')
        names = [
            f"{package.name} {package.version or 'missing'}"
            + (f" (needs {package.needed})" if package.version and not package.usable else "")
            for package in own
        ]
        missing = not all(package.usable for package in own)
        table.add_row(extra or "base", escape(", ".join(names)), escape(command) if missing else "")
    results.print(table)


def _print_tests(tests: list[selftest.Result]) -> None:
    table = Table("test", "device", "dtype", "implementation", "cases", "result")
    for test in tests:
        result = f"{test.wrong} FAILED" if test.wrong else "passed" if test.cases else escape(test.note)
        table.add_row(test.test, test.device, test.dtype, test.served, str(test.cases), result)
    results.print(table)
    for test in tests:
        if test.wrong:
            _print_line(f"FAILED: {test.test}, {test.device}, {test.dtype}: {test.note}")


def _test_padding(arguments: Namespace) -> int:
    """Compare a padded batch with single images and return 0, or 1 if they differ or the network is refused."""
    device = str(pick_device(arguments.device))
    with console.status(f"{arguments.images} images of different sizes, in one batch and one by one"):
        report = check_padding(arguments.backbone, arguments.stage, arguments.weights, arguments.images, device)
    if arguments.json:
        values = {**dataclasses.asdict(report), "exact": report.exact, "bound": BOUND}
        finite = {name: None if value == math.inf else value for name, value in values.items()}  # JSON has no infinity
        sys.stdout.write(json.dumps(finite) + "\n")
    else:
        _print_line(_padding_line(report))
    return 0 if report.exact else 1


def _padding_line(report: PaddingReport) -> str:
    if report.difference is None or report.worst is None or report.naive is None:
        return f"{report.backbone}: refused. {report.refused}"
    height, width = report.worst
    return (
        f"{report.backbone}: {'exact' if report.exact else 'NOT exact'}. {len(report.sizes)} images of different sizes,"
        f" padded batch against single images: largest relative difference {report.difference:.1e} at"
        f" {height} x {width} (bound {BOUND:g}); without clearing of the padding {report.naive:.1e}"
        + (f"; in float64 {report.double:.1e} (bound {DOUBLE_BOUND:g})" if report.double is not None else "")
    )
