"""`sppnet bench`: time the pooling operators on a given shape against alternatives in torch."""

import json
import re
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from rich.table import Table

from sppnet.cli.console import line, results
from sppnet.cli.parser import CommandParser, OptionValueError, levels, options_of
from sppnet.ops.levels import parse_levels
from sppnet.tools.cases import Case

if TYPE_CHECKING:
    from sppnet.tools.bench import Comparison


def bench_parser() -> CommandParser:
    """Build the argument parser of `sppnet bench`."""
    parser = CommandParser(
        "bench",
        "Time pyramid pooling of feature maps of a given shape, or of regions of them, against alternatives in torch"
        " and torchvision. Results are checked for equality first, and timings are interleaved.",
    )
    parser.fields(
        "data",
        Case((8, 256, 38, 50), (6, 3, 2, 1)),
        shape=("shape of the maps: images,channels,height,width", _shape),
        dtype="dtype of the maps",
        layout="memory format of the maps",
        levels=("pyramid levels, such as 6,3,2,1 or 2x3,1", levels),
        reduce="pooling within a bin",
        backward="also time the gradient of the maps",
    )
    text = "number of regions over all images, at stride 16; default: whole maps"
    parser.option("data", "--num-boxes", text, type=int | None)
    parser.option("hardware", "--device", "auto, cpu, cuda or mps", "cpu")
    parser.option("hardware", "--threads", "number of torch threads; default: chosen by torch", type=int | None)
    text = "print one JSON object and nothing else on standard output"
    parser.option("output", "--json", text, False, action="store_true")
    return parser


def bench(arguments: Namespace) -> int:
    """Time one case, print the result and return 0."""
    import torch

    from sppnet.devices import pick_device
    from sppnet.tools.bench import compare, environment, legend

    parse_levels(arguments.levels)
    for name in ("num_boxes", "threads"):
        if arguments[name] is not None and arguments[name] < 1:
            hint = "; omit it for whole maps" if name == "num_boxes" else ""
            raise ValueError(f"{name}: expected at least 1, got {arguments[name]}{hint}")
    device = str(pick_device(arguments.device))
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    case = replace(options_of(Case, arguments), boxes=arguments.num_boxes or 0, device=device)
    comparison = compare(case, rounds=3)
    if arguments.json:
        sys.stdout.write(json.dumps({**environment(device), **asdict(comparison)}) + "\n")
    else:
        results.print(_table(comparison, torch.get_num_threads()))
        for note in legend([comparison]):
            line(f"- {note}")
    return 0


def _shape(text: Any) -> tuple[int, int, int, int]:
    parts = [int(part) for part in re.findall(r"\d+", str(text))]
    if len(parts) != 4 or min(parts) < 1 or not re.fullmatch(r"[\d,\s()\[\]]+", str(text)):
        raise OptionValueError(
            f"expected images, channels, height and width, each at least 1, such as 8,256,38,50, got {text!r}"
        )
    images, channels, height, width = parts
    return images, channels, height, width


def _table(comparison: "Comparison", threads: int) -> Table:
    from sppnet.tools.bench import FASTER

    case = comparison.case
    images, channels, height, width = case.shape
    pooled = f"{case.boxes} regions ({100 * (comparison.distinct or 0):.0f} % distinct)" if case.boxes else "whole maps"
    title = (
        f"{pooled}, {'forward and backward' if case.backward else 'forward'}: {images} images, {channels} channels,"
        f" {height} x {width} cells (height x width), {case.dtype} {case.layout}, {case.reduce}; threads: {threads},"
        f" rounds: {comparison.rounds}"
    )
    table = Table("", "median µs", "quartiles µs", "ratio to sppnet", "quartiles", title=title, title_justify="left")
    for timing in comparison.timings:
        low, high = timing.quartiles_us
        first, third = timing.ratio_quartiles
        table.add_row(
            timing.name,
            f"{timing.median_us:,.1f}",
            f"{low:,.1f} - {high:,.1f}",
            f"{timing.ratio:.2f}{f' {FASTER}' if timing.lost else ''}",
            f"{first:.2f} - {third:.2f}",
        )
    return table
