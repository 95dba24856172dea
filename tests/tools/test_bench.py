"""Timing: turns, medians and ratios on a clock of its own; peers that must be equal; the command and the tables."""

import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sppnet.cli.main import run
from sppnet.tools.bench import Comparison, Timing, check, compare, environment, measure, summarise
from sppnet.tools.peers import (
    Candidate,
    Case,
    Role,
    box_cells,
    draw_boxes,
    proposals,
    pyramid_candidates,
    region_candidates,
)


class Clock:
    """A clock that only calls move on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.called: list[str] = []

    def __call__(self) -> float:
        return self.now

    def task(self, name: str, seconds: float, first: float = 0.0) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds + (0.0 if name in self.called else first)
            self.called.append(name)

        return call


def test_seconds_are_those_of_one_call_and_warm_up_does_not_count() -> None:
    clock = Clock()
    calls = {"slow": clock.task("slow", 0.25, first=9.0), "fast": clock.task("fast", 0.0006, first=9.0)}
    seconds = measure(calls, 0.0, rounds=3, clock=clock)
    np.testing.assert_allclose(seconds["slow"], [0.25] * 3)
    np.testing.assert_allclose(seconds["fast"], [0.0006] * 3)
    assert clock.called.count("slow") == 2 + 3
    assert clock.called.count("fast") == 2 + 3 * 4  # a round is four of 0.6 ms


def test_rounds_go_on_until_the_budget_is_spent() -> None:
    clock = Clock()
    seconds = measure({"a": clock.task("a", 0.1), "b": clock.task("b", 0.3)}, 1.9, rounds=2, clock=clock)
    assert [len(values) for values in seconds.values()] == [5, 5]


def test_the_order_changes_from_round_to_round() -> None:
    clock = Clock()
    names = ["a", "b", "c", "d"]
    measure({name: clock.task(name, 0.1) for name in names}, 0.0, rounds=20, clock=clock)
    turns = [tuple(clock.called[i : i + 4]) for i in range(8, len(clock.called), 4)]
    assert all(sorted(turn) == names for turn in turns)
    assert len(set(turns)) > 8
    assert {turn[0] for turn in turns} == set(names)


def test_waiting_for_the_device_is_timed() -> None:
    clock = Clock()
    seconds = measure({"a": clock.task("a", 0.1)}, 0.0, rounds=2, clock=clock, wait=clock.task("wait", 0.5))
    np.testing.assert_allclose(seconds["a"], [0.6, 0.6])


def test_ratios_are_taken_round_by_round() -> None:
    """Every second round is ten times slower for all, which the ratio does not see."""
    load = np.array([1.0, 10.0, 1.0, 10.0, 1.0])
    seconds = {"ours": 1e-6 * load, "slow": 3e-6 * load, "fast": 1e-6 * load * np.array([0.2, 0.4, 0.5, 0.6, 0.8])}
    ours, slow, fast = summarise(seconds, {"ours": "ours", "slow": "peer", "fast": "peer"}, {"slow": "why"})
    assert (ours.ratio, ours.median_us) == pytest.approx((1, 1))
    assert ours.quartiles_us == pytest.approx((1, 10))
    assert (slow.ratio, *slow.ratio_quartiles) == pytest.approx((3, 3, 3))
    assert (fast.ratio, *fast.ratio_quartiles) == pytest.approx((0.5, 0.4, 0.6))
    assert (slow.role, slow.note, slow.lost) == ("peer", "why", False)
    assert (fast.note, fast.lost) == ("", True)
    comparison = Comparison(Case((1, 1, 1, 1), (1,)), 5, (ours, slow, fast))
    assert comparison.best_peer() == fast
    assert comparison.find("slow") == slow
    assert comparison.find("none") is None


@pytest.mark.parametrize("role", ["ours", "control", "limit", "orientation"])
def test_only_to_a_peer_can_be_lost(role: Role) -> None:
    assert not Timing("x", role, 1.0, (1.0, 1.0), 0.5, (0.5, 0.5)).lost


CASES = [
    Case((2, 3, 13, 9), (4, 2, 1)),
    Case((1, 2, 5, 17), (6, 3, 2, 1), "bfloat16", "channels_last"),
    Case((3, 5, 1, 7), (1, (2, 3), 4, (4, 6)), "float32", "channels_last"),
    Case((2, 70, 11, 10), (3, 2), reduce="avg"),
    Case((2, 3, 11, 10), (3, 2), "bfloat16", reduce="avg"),
    Case((2, 3, 14, 19), (6, 3, 2, 1), boxes=31),
    Case((3, 70, 9, 31), (4, (1, 2), 1), "bfloat16", "channels_last", boxes=23),
    Case((1, 3, 14, 19), (6, 3, 2, 1), "float16", boxes=11),
    Case((2, 3, 14, 9), (3, 2), boxes=12, reduce="avg"),
]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_peers_equal_ours(case: Case, backward: bool) -> None:
    case = replace(case, backward=backward)
    candidates = region_candidates(case, draw_boxes(case)) if case.boxes else pyramid_candidates(case)
    check(candidates, case)
    assert sum(candidate.role == "peer" for candidate in candidates) >= 1
    assert len({candidate.name for candidate in candidates}) == len(candidates)


def test_coarse_levels_come_from_the_smallest_that_they_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled: list[tuple[int, int]] = []
    derived: list[tuple[int, int]] = []

    def adaptive(x: Tensor, grid: tuple[int, int]) -> Tensor:
        pooled.append(grid)
        return x.new_zeros(*x.shape[:2], *grid)

    def fixed(x: Tensor, kernel: tuple[int, int]) -> Tensor:
        derived.append(kernel)
        return x.new_zeros(*x.shape[:2], x.shape[2] // kernel[0], x.shape[3] // kernel[1])

    form = {c.name: c.form for c in pyramid_candidates(Case((1, 2, 9, 9), (6, 4, 3, 2, 1)))}["coarse from fine"]
    monkeypatch.setattr(F, "adaptive_max_pool2d", adaptive)
    monkeypatch.setattr(F, "max_pool2d", fixed)
    assert form(torch.zeros(1, 2, 9, 9)).shape == (1, 2 * 66)
    assert pooled == [(6, 6), (4, 4)]
    assert derived == [(2, 2), (2, 2), (2, 2)]  # 3 from 6, 2 from 4, 1 from 2


def wrong(bias: float = 0.0, factor: float = 1.0) -> list[Candidate]:
    ours, peer, *_ = pyramid_candidates(Case((2, 3, 8, 8), (2, 1)))

    def form(x: Tensor) -> Tensor:
        found = peer.form(x)
        return found.detach() * (1 - factor) + factor * found + bias

    return [ours, Candidate("off", form)]


def test_an_unequal_peer_raises() -> None:
    case = Case((2, 3, 8, 8), (2, 1))
    check(wrong(), case)
    with pytest.raises(RuntimeError, match=r"off is no peer: its values differ from sppnet's by up to 0\.001"):
        check(wrong(bias=1e-3), case)
    with pytest.raises(RuntimeError, match="off is no peer: its values differ from sppnet's by up to nan"):
        check(wrong(bias=math.nan), case)
    with pytest.raises(RuntimeError, match=r"its values have the shape \(2, 12\), and sppnet's \(2, 15\)"):
        check([wrong()[0], Candidate("off", lambda x: F.adaptive_max_pool2d(x, 2).flatten(1))], case)


def test_a_peer_with_another_gradient_raises() -> None:
    with pytest.raises(RuntimeError, match="off is no peer: its gradients differ from sppnet's"):
        check(wrong(factor=0.5), Case((2, 3, 8, 8), (2, 1), backward=True))


def test_what_is_for_orientation_may_differ() -> None:
    ours, off = wrong(bias=1.0)
    check([ours, replace(off, role="orientation")], Case((2, 3, 8, 8), (2, 1), backward=True))


def test_a_candidate_that_makes_a_part_is_scaled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop over crops is differentiated for 250 windows, whatever their number."""
    monkeypatch.setattr("sppnet.tools.bench.measure", lambda calls, *_, **__: {name: np.ones(3) for name in calls})
    case = Case((1, 2, 6, 7), (1,), boxes=500, backward=True)
    comparison = compare(case, 0.0, rounds=1)
    crops = comparison.find("crops of channels_last")
    assert crops is not None
    assert (crops.median_us, crops.ratio) == (2e6, 2)
    assert {timing.ratio for timing in comparison.timings if timing.name != crops.name} == {1}
    assert crops.note == "250 of 500 windows timed, and scaled"
    found = {c.name: c for c in region_candidates(case, draw_boxes(case))}["crops of channels_last"]
    assert found.share == 0.5
    assert len(found.form(torch.zeros(1, 2, 6, 7))) == 250
    forward = {c.name: c for c in region_candidates(replace(case, backward=False), draw_boxes(case))}
    assert forward["crops of channels_last"].share == 1


@pytest.mark.parametrize(("height", "width"), [(40, 60), (75, 100), (38, 50)])
def test_proposals_look_like_proposals(height: int, width: int) -> None:
    case = Case((1, 1, height, width), (1,), boxes=2000)
    (boxes,) = draw_boxes(case)
    assert torch.equal(boxes, proposals(2000, 16 * height, 16 * width))
    cells = box_cells([boxes], case)
    assert 0.65 <= len(cells.unique(dim=0)) / 2000 <= 0.8
    assert (cells[:, 1:3] >= 0).all()
    assert (cells[:, 3] <= width).all()
    assert (cells[:, 4] <= height).all()
    assert (cells[:, 3] == width).any()  # up to the last cell
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(dim=1).log2()
    assert 10 < areas.quantile(0.25) < areas.quantile(0.75) - 2 < math.log2(256 * height * width) - 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_boxes_on_a_tiny_map_stay_on_it(count: int) -> None:
    case = Case((2, 1, 1, 2), (1,), boxes=count)
    cells = box_cells(draw_boxes(case), case)
    assert cells.shape == (count, 5)
    assert (cells[:, 3] <= 2).all()
    assert (cells[:, 4] == 1).all()


def test_bench_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--shape", "1,4,6,7", "--levels", "2x3,1", "--backward", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content) == {"machine", "versions", "threads", "date", "case", "rounds", "timings", "distinct"}
    assert set(content["machine"]) == {"cpu", "avx2", "avx512", "cores", "os", "gpu"}
    assert set(content["versions"]) == {"python", "torch", "torchvision", "numba", "sppnet"}
    assert content["versions"]["torch"] == version("torch")
    assert content["case"] == {
        "shape": [1, 4, 6, 7],
        "levels": [[2, 3], 1],
        "dtype": "float32",
        "layout": "nchw",
        "backward": True,
        "boxes": 0,
        "reduce": "max",
        "device": "cpu",
    }
    assert content["rounds"] >= 3
    assert content["distinct"] is None
    names = ["sppnet", "adaptive", "coarse from fine", "through channels_last", "sppnet again", "limit"]
    assert [timing["name"] for timing in content["timings"]] == names
    assert [timing["role"] for timing in content["timings"]] == ["ours", *["peer"] * 3, "control", "limit"]
    for timing in content["timings"]:
        assert set(timing) == {"name", "role", "median_us", "quartiles_us", "ratio", "ratio_quartiles", "note"}
        assert 0 < timing["quartiles_us"][0] <= timing["median_us"] <= timing["quartiles_us"][1]
        assert 0 < timing["ratio_quartiles"][0] <= timing["ratio"] <= timing["ratio_quartiles"][1]


def test_bench_prints_a_table_of_regions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppnet.cli.bench.compare", lambda case, **_: compare(case, 0.0, rounds=1))
    options = ["--boxes", "9", "--dtype", "bfloat16", "--layout", "channels_last", "--threads", "1"]
    assert run(["bench", "--shape", "2,4,9,8", *options]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "9 regions (" in out
    assert "2 x 4 x 9 x 8 bfloat16 channels_last, max; threads: 1, rounds: 1" in out
    assert "orientation" in out
    assert "sppnet again" in out
    assert "limit" not in out.partition("Numbers are times")[0]  # in bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "8,256,38"], "shape: expected images, channels, height and width, each at least 1, such as"),
        (["--shape", "8,256,38,0"], "shape: expected images"),
        (["--shape", "8,-256,38,1"], "shape: expected images"),
        (["--levels", "2,0"], "smallest level is 1"),
        (["--boxes", "0"], "boxes: expected at least 1, or none for whole maps; got 0"),
        (["--threads", "0"], "threads: expected at least 1; got 0"),
        (["--device", "abacus"], "device: 'abacus' cannot be used here"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def script() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "run.py"
    spec = importlib.util.spec_from_file_location("benchmarks_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_has_all_cases_by_themselves() -> None:
    module = script()
    cases = [*module.pyramid_cases("cpu"), *module.region_cases("cpu", module.REGIONS)]
    assert len(set(cases)) == len(cases) == 9 * 8 + 3 * 4


def test_the_script_writes_json_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script()
    monkeypatch.setattr(module, "PYRAMIDS", [((1, 2, 5, 4), (2, 1)), ((1, 3, 4, 4), (2, 1))])
    monkeypatch.setattr(module, "REGIONS", [((1, 2, 5, 4), 7)])
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures of cpu -->\nold\n<!-- end of figures of cpu -->\nafter\n")
    module.main(["--quick", "--out", str(tmp_path / "all.json"), "--markdown", str(page)])
    content = json.loads((tmp_path / "all.json").read_text())
    assert len(content["cases"]) == 2 * 8 + 4
    assert content["threads"] == environment()["threads"]
    assert {case["case"]["boxes"] for case in content["cases"]} == {0, 50}
    text = page.read_text()
    assert text.startswith("before\n<!-- figures of cpu -->\n\n")
    assert text.endswith("\n\n<!-- end of figures of cpu -->\nafter\n")
    assert "old" not in text
    assert text.count("\n| 1 x 2 x 5 x 4 |") == 8
    assert text.count("\n| 1 x 2 x 5 x 4: 50, ") == 4
    assert "Whole maps, over all shapes" in capsys.readouterr().out
    module.main(["--quick", "--out", str(tmp_path / "all.json"), "--markdown", str(page)])
    assert len(page.read_text().splitlines()) == len(text.splitlines())


def test_a_page_without_markers_is_refused_before_anything_is_timed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- end of figures of cpu --><!-- figures of cpu -->")
    with pytest.raises(SystemExit, match="expected the lines <!-- figures of cpu -->"):
        script().main(["--markdown", str(page)])


def test_losses_are_marked_and_means_are_geometric() -> None:
    module = script()

    def made(ratio: float, shape: tuple[int, int, int, int]) -> Comparison:
        entries: list[tuple[str, Any, float]] = [
            ("sppnet", "ours", 1),
            ("adaptive", "peer", ratio),
            ("limit", "limit", 0.25),
        ]
        timings = tuple(Timing(n, role, r * 10.0, (1.0, 2.0), float(r), (r - 0.1, r + 0.1)) for n, role, r in entries)
        return Comparison(Case(shape, (2, 1)), 5, timings)

    tables = module.make_tables([made(8.0, (1, 1, 2, 2)), made(0.5, (1, 1, 3, 3))], quartiles=True)
    (_, summary), (_, regions), (columns, each) = tables.values()
    assert summary == [
        ["float32", "nchw", "forward", *["2.00 (0.50 - 8.00) ▼"] * 2, "0.25 (0.25 - 0.25)", "", "1 of 2"]
    ]
    assert regions == []
    assert columns[5:] == ["sppnet µs", "best of torch", "adaptive", "limit"]
    assert each[0][5:] == ["10", "8.00", "8.00 (7.90 - 8.10)", "0.25 (0.15 - 0.35)"]
    assert each[1][5:] == ["10", "0.50 ▼", "0.50 (0.40 - 0.60) ▼", "0.25 (0.15 - 0.35)"]


def test_docs_have_the_markers() -> None:
    module = script()
    before, after = module.split_page(module.ROOT.parent / "docs" / "performance.md", "cpu")
    assert before.endswith("<!-- figures of cpu -->")
    assert after.startswith("<!-- end of figures of cpu -->")


def test_levels_that_torchvision_cuts_inexactly_end_no_run() -> None:
    """At 57 cells its level 7 reads one row too many, so it is no peer there."""
    case = Case((1, 16, 60, 60), (7, 2), boxes=60)
    roles = {one.name: one.role for one in region_candidates(case, draw_boxes(case))}
    assert roles["roi_pool"] == roles["roi_pool, coarse from fine"] == "orientation"
    assert roles["crops of channels_last"] == "peer"
