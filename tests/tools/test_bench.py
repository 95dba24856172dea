"""Timing with a fake clock, comparison of candidates, `sppnet bench` and `benchmarks/run.py`."""

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

from sppnet.cli.main import main, run
from sppnet.tools.bench import Comparison, Timing, check, compare, environment, measure, summarize
from sppnet.tools.cases import Case
from sppnet.tools.peers import Candidate, Role, draw_boxes, pyramid_candidates, region_candidates
from tests.helpers.scripts import load_script


class Clock:
    """Clock that only the timed calls advance."""

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


def test_measures_seconds_per_call_without_warm_up() -> None:
    clock = Clock()
    calls = {"slow": clock.task("slow", 0.25, first=9.0), "fast": clock.task("fast", 0.0006, first=9.0)}
    seconds = measure(calls, 0.0, rounds=3, clock=clock)
    np.testing.assert_allclose(seconds["slow"], [0.25] * 3)
    np.testing.assert_allclose(seconds["fast"], [0.0006] * 3)
    assert clock.called.count("slow") == 2 + 3
    assert clock.called.count("fast") == 2 + 3 * 4  # four calls of 0.6 ms per round


def test_rounds_continue_until_the_budget_is_spent() -> None:
    clock = Clock()
    seconds = measure({"a": clock.task("a", 0.1), "b": clock.task("b", 0.3)}, 1.9, rounds=2, clock=clock)
    assert [len(values) for values in seconds.values()] == [5, 5]


def test_order_changes_between_rounds() -> None:
    clock = Clock()
    names = ["a", "b", "c", "d"]
    measure({name: clock.task(name, 0.1) for name in names}, 0.0, rounds=20, clock=clock)
    rounds = [tuple(clock.called[i : i + 4]) for i in range(8, len(clock.called), 4)]
    assert all(sorted(order) == names for order in rounds)
    assert len(set(rounds)) > 8
    assert {order[0] for order in rounds} == set(names)


def test_device_synchronization_is_timed() -> None:
    clock = Clock()
    seconds = measure({"a": clock.task("a", 0.1)}, 0.0, rounds=2, clock=clock, wait=clock.task("wait", 0.5))
    np.testing.assert_allclose(seconds["a"], [0.6, 0.6])


def test_ratios_are_taken_round_by_round() -> None:
    """Every second round is ten times slower for all candidates, which must not affect the ratios."""
    load = np.array([1.0, 10.0, 1.0, 10.0, 1.0])
    seconds = {"ours": 1e-6 * load, "slow": 3e-6 * load, "fast": 1e-6 * load * np.array([0.2, 0.4, 0.5, 0.6, 0.8])}
    ours, slow, fast = summarize(seconds, {"ours": "ours", "slow": "peer", "fast": "peer"}, {"slow": "why"})
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
def test_only_peers_count_as_losses(role: Role) -> None:
    assert not Timing("x", role, 1.0, (1.0, 1.0), 0.5, (0.5, 0.5)).lost


def candidates_off_by(bias: float = 0.0, factor: float = 1.0) -> list[Candidate]:
    ours, peer, *_ = pyramid_candidates(Case((2, 3, 8, 8), (2, 1)))

    def form(x: Tensor) -> Tensor:
        vectors = peer.form(x)
        return vectors.detach() * (1 - factor) + factor * vectors + bias

    return [ours, Candidate("off", form)]


def test_peer_with_different_values_raises() -> None:
    case = Case((2, 3, 8, 8), (2, 1))
    check(candidates_off_by(), case)
    with pytest.raises(RuntimeError, match=r"expected the same values as sppnet, got a difference of up to 0\.001"):
        check(candidates_off_by(bias=1e-3), case)
    with pytest.raises(RuntimeError, match="off: expected the same values as sppnet, got a difference of up to nan"):
        check(candidates_off_by(bias=math.nan), case)
    with pytest.raises(RuntimeError, match=r"off: expected values of shape \(2, 15\), got \(2, 12\)"):
        check([candidates_off_by()[0], Candidate("off", lambda x: F.adaptive_max_pool2d(x, 2).flatten(1))], case)


def test_peer_with_different_gradient_raises() -> None:
    with pytest.raises(RuntimeError, match="off: expected the same gradients as sppnet"):
        check(candidates_off_by(factor=0.5), Case((2, 3, 8, 8), (2, 1), backward=True))


def test_orientation_candidates_may_differ() -> None:
    ours, off = candidates_off_by(bias=1.0)
    check([ours, replace(off, role="orientation")], Case((2, 3, 8, 8), (2, 1), backward=True))


def test_time_of_a_partial_candidate_is_scaled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass of the loop over crops is always timed for 250 windows."""
    monkeypatch.setattr("sppnet.tools.bench.measure", lambda calls, *_, **__: {name: np.ones(3) for name in calls})
    case = Case((1, 2, 6, 7), (1,), boxes=500, backward=True)
    comparison = compare(case, 0.0, rounds=1)
    crops = comparison.find("crops of channels_last")
    assert crops is not None
    assert (crops.median_us, crops.ratio) == (2e6, 2)
    assert {timing.ratio for timing in comparison.timings if timing.name != crops.name} == {1}
    assert crops.note == "250 of 500 windows timed, scaled to all"
    partial = {c.name: c for c in region_candidates(case, draw_boxes(case))}["crops of channels_last"]
    assert partial.share == 0.5
    assert len(partial.form(torch.zeros(1, 2, 6, 7))) == 250
    forward = {c.name: c for c in region_candidates(replace(case, backward=False), draw_boxes(case))}
    assert forward["crops of channels_last"].share == 1


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
    monkeypatch.setattr("sppnet.tools.bench.compare", lambda case, **_: compare(case, 0.0, rounds=1))
    options = ["--num-boxes", "9", "--dtype", "bfloat16", "--layout", "channels_last", "--threads", "1"]
    assert run(["bench", "--shape", "2,4,9,8", *options]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "9 regions (" in out
    assert (
        "2 images, 4 channels, 9 x 8 cells (height x width), bfloat16 channels_last, max; threads: 1, rounds: 1" in out
    )
    assert "orientation" in out
    assert "sppnet again" in out
    assert "limit" not in out.partition("Values are times")[0]  # the limit is timed in float32 only


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "8,256,38"], "--shape: expected images, channels, height and width, each at least 1, such as"),
        (["--shape", "8,256,38,0"], "--shape: expected images"),
        (["--shape", "8,-256,38,1"], "--shape: expected images"),
        (["--levels", "2,0"], "smallest level is 1"),
        (["--num-boxes", "0"], "num_boxes: expected at least 1, got 0; omit it for whole maps"),
        (["--threads", "0"], "threads: expected at least 1, got 0"),
        (["--device", "abacus"], "device: expected an available device, got 'abacus'"),
        (["--device", "cdua"], "got 'cdua'; did you mean cuda?"),
        (["--boxes", "3"], "--boxes is now called --num-boxes"),
    ],
)
def test_rejects_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(["bench", *arguments])
    assert exit_code.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def script() -> ModuleType:
    return load_script("benchmarks/run.py")


def test_script_has_no_duplicate_cases() -> None:
    module = script()
    cases = [*module.pyramid_cases("cpu"), *module.region_cases("cpu", module.REGIONS)]
    assert len(set(cases)) == len(cases) == 9 * 8 + 3 * 4


def test_script_writes_json_and_tables(
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


def test_script_rejects_a_page_without_markers_before_timing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- end of figures of cpu --><!-- figures of cpu -->")
    with pytest.raises(SystemExit, match="expected the markers <!-- figures of cpu -->"):
        script().main(["--markdown", str(page)])


def test_tables_mark_losses_and_use_geometric_means() -> None:
    module = script()

    def comparison(ratio: float, shape: tuple[int, int, int, int]) -> Comparison:
        entries: list[tuple[str, Any, float]] = [
            ("sppnet", "ours", 1),
            ("adaptive", "peer", ratio),
            ("limit", "limit", 0.25),
        ]
        timings = tuple(Timing(n, role, r * 10.0, (1.0, 2.0), float(r), (r - 0.1, r + 0.1)) for n, role, r in entries)
        return Comparison(Case(shape, (2, 1)), 5, timings)

    tables = module.make_tables([comparison(8.0, (1, 1, 2, 2)), comparison(0.5, (1, 1, 3, 3))], quartiles=True)
    (_, summary), (_, regions), (columns, rows) = tables.values()
    assert summary == [
        ["float32", "nchw", "forward", *["2.00 (0.50 - 8.00) ▼"] * 2, "0.25 (0.25 - 0.25)", "", "1 of 2"]
    ]
    assert regions == []
    assert columns[5:] == ["sppnet µs", "best of torch", "adaptive", "limit"]
    assert rows[0][5:] == ["10", "8.00", "8.00 (7.90 - 8.10)", "0.25 (0.15 - 0.35)"]
    assert rows[1][5:] == ["10", "0.50 ▼", "0.50 (0.40 - 0.60) ▼", "0.25 (0.15 - 0.35)"]


def test_docs_have_the_markers() -> None:
    module = script()
    before, after = module.split_page(module.ROOT.parent / "docs" / "performance.md", "cpu")
    assert before.endswith("<!-- figures of cpu -->")
    assert after.startswith("<!-- end of figures of cpu -->")
