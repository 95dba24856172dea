"""`sppnet doctor`: whether the installation, or a network, does on this machine what it is to do."""

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
    """Options of `sppnet doctor`."""
    parser = ArgumentParser(
        description="Tell versions, devices and weights, and test the operators on this machine: every device and dtype"
        " against plain torch in float64, torch.compile and ONNX where they are installed. Exit code 1 where an"
        " operator is wrong or the embedded weights are damaged. With --backbone test instead whether images of"
        " different sizes in one padded batch get the answers from a network that they get alone: exit code 1 where"
        f" the largest difference is above {BOUND:g} of the largest value, in float64 above {DOUBLE_BOUND:g}, or where"
        " the network has a layer for which it cannot be had, which is named."
    )
    add = parser.add_argument
    add("--backbone", type=str | None, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add("--stage", type=int | None, help="--backbone: its feature map: 0 the finest, -1 the coarsest; left out: last")
    add("--weights", default="none", help="--backbone: none (random), auto, hub (downloads timm's), or a file")
    add("--images", type=int, default=32, help="--backbone: images of different sizes in the batch")
    add("--device", default="auto", help="cpu, cuda or mps; auto: all that there are, with --backbone the first GPU")
    add("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def doctor(arguments: Namespace) -> int:
    """Test, and print what was found; 1 where something is wrong."""
    if arguments.backbone is not None:
        return _padding(arguments)
    for name, default in _PADDING_OPTIONS.items():
        if arguments[name] != default:
            raise ValueError(f"{name}: an option of --backbone, which names the network to test; got none")
    devices = environment.devices()
    if arguments.device != "auto":
        name = _with_index(pick_device(arguments.device))
        devices = tuple(device for device in devices if device.name == name)
    with console.status("looking for packages and weights"):
        packages, weights = environment.packages(), environment.weights()
    tests = _test([torch.device(device.name) for device in devices])
    well = not any(test.wrong for test in tests) and not any(one.problem for one in weights)
    if arguments.json:
        found = {
            "sppnet": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {extra or "base": [dataclasses.asdict(one) for one in own] for extra, own in packages.items()},
            "devices": [dataclasses.asdict(device) for device in devices],
            "weights": [dataclasses.asdict(one) for one in weights],
            "tests": [dataclasses.asdict(test) for test in tests],
            "ok": well,
        }
        sys.stdout.write(json.dumps(found) + "\n")
        return 0 if well else 1
    _say(f"sppnet {__version__}, Python {platform.python_version()}, {platform.platform()}")
    _say_packages(packages)
    for device in devices:
        memory = f", {device.memory / 2**30:.1f} GB" if device.memory else ""
        _say(f"{device.name}: {device.model}{memory}; {device.details}")
    for one in weights:
        _say(f"weights, {one.source}: {one.name}, " + (f"{one.bytes / 1e6:.1f} MB" if not one.problem else "DAMAGED"))
    _say_tests(tests)
    for problem in (one.problem for one in weights if one.problem):
        _say(f"DAMAGED: {problem}")
    _say("all is well" if well else "something is wrong; see above")
    return 0 if well else 1


def _with_index(device: torch.device) -> str:
    return f"cuda:{device.index or 0}" if device.type == "cuda" else device.type


def _test(devices: list[torch.device]) -> list[selftest.Result]:
    cases = selftest.cases()
    found = selftest.check_operators(devices, track(cases, "operators, compiled when they are first used", len(cases)))
    for device in devices:
        with console.status(f"torch.compile on {device}"):
            found.append(selftest.check_compiled(device))
    with console.status("ONNX"):
        found.append(selftest.check_onnx())
    return found


def _say(line: str) -> None:
    results.print(line, highlight=False, soft_wrap=True, markup=False)


def _say_packages(packages: dict[str, tuple[environment.Package, ...]]) -> None:
    table = Table("for", "packages", "to install")
    for extra, own in packages.items():
        command = 'pip install "sppnet' + (f'[{extra}]"' if extra else '"')
        names = [
            f"{one.name} {one.version or 'missing'}"
            + (f" (needs {one.needed})" if one.version and not one.usable else "")
            for one in own
        ]
        missing = not all(one.usable for one in own)
        table.add_row(extra or "all", escape(", ".join(names)), escape(command) if missing else "")
    results.print(table)


def _say_tests(tests: list[selftest.Result]) -> None:
    table = Table("test", "device", "dtype", "served by", "cases", "")
    for test in tests:
        verdict = f"{test.wrong} WRONG" if test.wrong else "right" if test.cases else escape(test.note)
        table.add_row(test.test, test.device, test.dtype, test.served, str(test.cases), verdict)
    results.print(table)
    for test in tests:
        if test.wrong:
            _say(f"WRONG: {test.test}, {test.device}, {test.dtype}: {test.note}")


def _padding(arguments: Namespace) -> int:
    """Print the largest difference; 1 where the answers differ or the network was refused."""
    device = str(pick_device(arguments.device))
    with console.status(f"{arguments.images} images of different sizes in one batch, and one by one"):
        report = check_padding(arguments.backbone, arguments.stage, arguments.weights, arguments.images, device)
    if arguments.json:
        values = {**dataclasses.asdict(report), "exact": report.exact, "bound": BOUND}
        finite = {name: None if value == math.inf else value for name, value in values.items()}  # JSON has no infinity
        sys.stdout.write(json.dumps(finite) + "\n")
    else:
        _say(_line(report))
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
