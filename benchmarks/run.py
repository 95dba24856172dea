"""Measure all benchmark tables, print them, and write them to a JSON file and to docs/performance.md.

    python benchmarks/run.py --threads 1 --out benchmarks/results.json --markdown

Run it on an otherwise idle machine. See benchmarks/README.md.
"""

import argparse
import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table

from sppnet.devices import pick_device
from sppnet.io.files import write_json
from sppnet.io.remote import write_text
from sppnet.progress import track
from sppnet.tools.bench import FASTER, Comparison, Timing, compare, environment, legend
from sppnet.tools.cases import Case, Dtype, Layout

ROOT = Path(__file__).resolve().parent
PYRAMIDS = [
    ((16, 256, 13, 13), (4, 2, 1)),
    ((16, 256, 13, 13), (6, 3, 2, 1)),
    ((32, 512, 7, 7), (4, 2, 1)),
    ((8, 256, 38, 50), (4, 2, 1)),
    ((8, 256, 38, 50), (6, 3, 2, 1)),
    ((1, 256, 75, 100), (4, 2, 1)),
    ((1, 256, 75, 100), (6, 3, 2, 1)),
    ((4, 256, 10, 20), (4, 2, 1)),
    ((8, 2048, 20, 30), (4, 2, 1)),
]
REGIONS = [((1, 256, 40, 60), 2000), ((1, 256, 75, 100), 2000), ((1, 1024, 38, 50), 2000)]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
PASSES = {False: "forward", True: "forward + backward"}

Rows = list[list[str]]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, budget, rounds, regions = str(pick_device(arguments.device)), arguments.budget, 5, REGIONS
    page = split_page(arguments.markdown, device) if arguments.markdown else None
    if arguments.quick:
        budget, rounds, regions = 0.0, 1, [(shape, 50) for shape, _ in REGIONS]
    cases = [*pyramid_cases(device), *region_cases(device, regions)]
    comparisons = [
        compare(case, budget, compiled=arguments.compile, rounds=rounds) for case in track(cases, "timing", len(cases))
    ]
    content = {**environment(device), "device": device, "budget_seconds": budget}
    content["cases"] = [dataclasses.asdict(comparison) for comparison in comparisons]
    write_json(content, arguments.out)
    show(comparisons)
    if page:
        write_text(f"{page[0]}\n\n{markdown(content, comparisons)}\n\n{page[1]}", arguments.markdown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--budget", type=float, default=1.5, help="seconds per case")
    add("--threads", type=int, help="number of torch threads; default: chosen by torch")
    add("--device", default="cpu", help="cpu or cuda")
    add("--compile", action="store_true", help="also time torch.compile of the reference, 10 s more per case")
    add("--quick", action="store_true", help="one round and 50 regions, as a smoke test")
    add("--out", type=Path, default=ROOT / "results.json", help="JSON file for all measurements")
    page = ROOT.parent / "docs" / "performance.md"
    add("--markdown", type=Path, nargs="?", const=page, help="page to write the tables to, between its markers")
    return parser


def pyramid_cases(device: str) -> list[Case]:
    options = itertools.product(DTYPES, LAYOUTS, PASSES, PYRAMIDS)
    return [Case(*pyramid, dtype, layout, backward, device=device) for dtype, layout, backward, pyramid in options]


def region_cases(device: str, regions: Iterable[tuple[tuple[int, int, int, int], int]]) -> list[Case]:
    options = itertools.product(PASSES, LAYOUTS, regions)
    return [
        Case(shape, (6, 3, 2, 1), "float32", layout, backward, boxes, device=device)
        for backward, layout, (shape, boxes) in options
    ]


def make_tables(comparisons: Sequence[Comparison], quartiles: bool) -> dict[str, tuple[list[str], Rows]]:
    """Return the columns and rows of each table by title."""
    pyramids = [comparison for comparison in comparisons if not comparison.case.boxes]
    regions = [comparison for comparison in comparisons if comparison.case.boxes]
    return {
        "Whole maps, over all shapes: geometric mean (smallest - largest)": _summary(pyramids),
        "Regions: number of regions, and share of distinct windows": _each(regions, quartiles),
        "Whole maps, one by one": _each(pyramids, quartiles),
    }


def _summary(comparisons: Sequence[Comparison]) -> tuple[list[str], Rows]:
    columns = ["dtype", "layout", "pass", "adaptive", "best of torch", "limit", "sppnet again", "lost"]
    rows = []
    for dtype, layout, backward in itertools.product(DTYPES, LAYOUTS, PASSES):
        key = (dtype, layout, backward)
        group = [c for c in comparisons if (c.case.dtype, c.case.layout, c.case.backward) == key]
        if not group:
            continue
        peers = [[c.find(name) for c in group] for name in ("adaptive", "limit", "sppnet again")]
        best = [c.best_peer() for c in group]
        lost = f"{sum(timing.lost for timing in best)} of {len(group)}"
        cells = [_spread(peers[0]), _spread(best), _spread(peers[1]), _spread(peers[2])]
        rows.append([dtype, layout, PASSES[backward], *cells, lost])
    return columns, rows


def _spread(timings: Sequence[Timing | None]) -> str:
    present = [timing for timing in timings if timing is not None]
    if not present:
        return ""
    ratios = [timing.ratio for timing in present]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    mark = f" {FASTER}" if any(timing.lost for timing in present) else ""
    return f"{mean:.2f} ({min(ratios):.2f} - {max(ratios):.2f}){mark}"


def _each(comparisons: Sequence[Comparison], quartiles: bool) -> tuple[list[str], Rows]:
    names = list(dict.fromkeys(timing.name for c in comparisons for timing in c.timings if timing.name != "sppnet"))
    columns = ["map", "levels", "dtype", "layout", "pass", "sppnet µs", "best of torch", *names]
    rows = []
    for comparison in comparisons:
        case = comparison.case
        shape = " x ".join(map(str, case.shape))
        if case.boxes:
            shape += f": {case.boxes}, {100 * (comparison.distinct or 0):.0f} %"
        cells = [_cell(comparison.find(name), quartiles) for name in names]
        best = comparison.best_peer()
        key = [shape, ",".join(map(str, case.levels)), case.dtype, case.layout, PASSES[case.backward]]
        mark = f" {FASTER}" if best.lost else ""
        rows.append([*key, f"{comparison.timings[0].median_us:,.0f}", f"{best.ratio:.2f}{mark}", *cells])
    return columns, rows


def _cell(timing: Timing | None, quartiles: bool) -> str:
    if timing is None:
        return ""
    first, third = timing.ratio_quartiles
    spread = f" ({first:.2f} - {third:.2f})" if quartiles else ""
    return f"{timing.ratio:.2f}{spread}" + (f" {FASTER}" if timing.lost else "")


def show(comparisons: Sequence[Comparison]) -> None:
    console = Console(width=180)
    for title, (columns, rows) in make_tables(comparisons, quartiles=False).items():
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in legend(comparisons):
        console.print(line, highlight=False)


def markdown(content: dict[str, Any], comparisons: Sequence[Comparison]) -> str:
    machine, versions = content["machine"], content["versions"]
    vectors = "AVX-512" if machine["avx512"] else "AVX2" if machine["avx2"] else "no AVX2"
    hardware = machine["gpu"] or f"{machine['cpu']} ({vectors}, {machine['cores']} cores)"
    parts = [
        f"{hardware}, {content['threads']} threads, {machine['os']}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items() if number)
        + f"; {content['date']}; {content['budget_seconds']} s per case.",
        "\n".join(f"- {line}" for line in legend(comparisons)),
    ]
    for title, (columns, rows) in make_tables(comparisons, quartiles=True).items():
        body = [columns, ["---"] * len(columns), *rows]
        parts += [f"### {title}", "\n".join(f"| {' | '.join(row)} |" for row in body)]
    return "\n\n".join(parts)


def split_page(page: Path, device: str) -> tuple[str, str]:
    """Split a page at the tables of a device; both parts include the markers."""
    begin, end = f"<!-- figures of {device} -->", f"<!-- end of figures of {device} -->"
    text = page.read_text(encoding="utf-8")
    if not 0 <= text.find(begin) < text.find(end):
        raise SystemExit(f"{page}: expected the markers {begin} and {end}, in this order")
    return text[: text.index(begin) + len(begin)], text[text.index(end) :]


if __name__ == "__main__":
    main()
