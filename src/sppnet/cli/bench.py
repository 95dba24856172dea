"""`sppnet bench`: time the pooling operators on a given shape against alternatives in torch."""

import dataclasses
import json
import re
import sys

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from sppnet.cli.common import parse_level_text
from sppnet.console import results
from sppnet.devices import pick_device
from sppnet.ops.bins import parse_levels
from sppnet.ops.reference import Reduce
from sppnet.tools.bench import FASTER, Comparison, compare, environment, legend
from sppnet.tools.peers import Case, Dtype, Layout


def bench_parser() -> ArgumentParser:
    """Build the argument parser of `sppnet bench`."""
    parser = ArgumentParser(
        description="Time pyramid pooling of feature maps of a given shape, or of regions of them, against alternatives"
        " in torch and torchvision. Results are checked for equality first, and timings are interleaved."
    )
    add = parser.add_argument
    add("--shape", type=list[int] | str, default="8,256,38,50", help="shape of the maps: images,channels,height,width")
    add("--levels", type=list[int] | str, default="6,3,2,1", help="pyramid levels, such as 6,3,2,1 or 2x3,1")
    add("--boxes", type=int | None, help="number of regions over all images, at stride 16; default: whole maps")
    add("--dtype", type=Dtype, default="float32", help="dtype of the maps")
    add("--layout", type=Layout, default="nchw", help="memory format of the maps: nchw or channels_last")
    add("--backward", action="store_true", help="also time the gradient of the maps")
    add("--reduce", type=Reduce, default="max", help="pooling within a bin: max or avg")
    add("--threads", type=int | None, help="number of torch threads; default: chosen by torch")
    add("--device", default="cpu", help="device: auto, cpu, cuda or mps")
    add("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def bench(arguments: Namespace) -> int:
    """Time one case, print the result and return 0."""
    shape, levels = _parse_shape(arguments.shape), parse_level_text(arguments.levels)
    parse_levels(levels)
    if arguments.boxes is not None and arguments.boxes < 1:
        raise ValueError(f"boxes: expected at least 1, got {arguments.boxes}; omit --boxes for whole maps")
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    device = str(pick_device(arguments.device))
    options = (arguments.dtype, arguments.layout, arguments.backward, arguments.boxes or 0, arguments.reduce)
    case = Case(shape, levels, *options, device=device)
    comparison = compare(case, rounds=3)
    if arguments.json:
        sys.stdout.write(json.dumps({**environment(device), **dataclasses.asdict(comparison)}) + "\n")
    else:
        results.print(_table(comparison))
        for line in legend([comparison]):
            results.print(f"- {line}", highlight=False, markup=False)
    return 0


def _parse_shape(text: str | list[int]) -> tuple[int, int, int, int]:
    parts = [int(part) for part in re.findall(r"\d+", str(text))]
    if len(parts) != 4 or min(parts) < 1 or not re.fullmatch(r"[\d,\s()\[\]]+", str(text)):
        raise ValueError(
            f"shape: expected images, channels, height and width, each at least 1, such as 8,256,38,50, got {text!r}"
        )
    images, channels, height, width = parts
    return images, channels, height, width


def _table(comparison: Comparison) -> Table:
    case = comparison.case
    pooled = f"{case.boxes} regions ({100 * (comparison.distinct or 0):.0f} % distinct)" if case.boxes else "whole maps"
    title = (
        f"{pooled}, {'forward and backward' if case.backward else 'forward'}: {' x '.join(map(str, case.shape))}"
        f" {case.dtype} {case.layout}, {case.reduce}; threads: {torch.get_num_threads()}, rounds: {comparison.rounds}"
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
