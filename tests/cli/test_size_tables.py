"""Tables of `sppnet compare sizes`."""

import io

from rich.console import Console

from sppnet.cli.size_tables import paper_table, tables
from sppnet.studies.sizes import CROP, FULL, OWN, VARIANTS, VIEWS, RunScores, SizeComparison, comparison_content


def table_lines() -> list[str]:
    """Format the tables of made-up errors for a console 80 characters wide."""
    errors = {"no-spp": (40.0, 50.0), "single": (30.0, 47.0), "multi": (20.0, 21.0)}
    runs = {
        name: [made_up_run(error, seed) for seed, error in enumerate(errors.get(name, (10.0, 10.0)))]
        for name in VARIANTS
    }
    console = Console(file=io.StringIO(), width=80)
    content = comparison_content(SizeComparison(runs, 2, (6, 7)))
    for table in [*tables(content), paper_table(content)]:
        console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return [" ".join(line.split()) for line in text.splitlines()]


def made_up_run(error: float, seed: int) -> RunScores:
    errors = {test: error + number for number, test in enumerate((VIEWS, CROP, FULL, OWN))}
    return RunScores(errors, errors, (2 + seed) * 1_000_000, 1.0 + seed, ())


def test_tables_show_means_ranges_gains_and_the_papers_results() -> None:
    lines = table_lines()
    assert not any("…" in line for line in lines)
    for line in (
        "top-1 45.0 38.5 20.5 10.0 10.0",
        "gain +6.5 +24.5 +35.0 +35.0",
        "ZF-5 35.99 34.98 34.60",
        "Overfeat-7 32.01 30.36 29.68 30.06",
        "Convnet*-5 13.92 13.54 13.33",
        "Overfeat-7 11.97 11.12 10.95 10.96",
        "1 crop 46.0 39.5 21.5 11.0 11.0",
        "1 full 47.0 40.5 22.5 12.0 12.0",
        "own size 48.0 41.5 23.5 13.0 13.0",
        "Overfeat-7 32.72 31.25",
        "seconds 1.5 1.5 1.5 1.5 1.5",
    ):
        assert line in lines
    assert lines.count("224 224 180,224 180-224 native") == 4
    full = ["top-1, 1 crop", "Overfeat-7 33.18 32.57", "top-1, 1 full", "Overfeat-7 32.72 31.25"]
    assert [line for line in lines if line in full] == full
    # The gains per seed are 40 - 30 and 50 - 47. Narrow cells wrap at spaces.
    ranges = " ".join(lines[lines.index("gain +6.5 +24.5 +35.0 +35.0") + 1 :][:2])
    assert ranges.startswith("+3.0 to +20.0 to +30.0 to +30.0 to")
    assert ranges.endswith("+10.0 +29.0 +40.0 +40.0")
