"""Benchmark of the operators against alternatives in torch and torchvision; outputs are compared before timing."""

import math
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sppnet.ops.levels import count_bins
from sppnet.tools.cases import Case
from sppnet.tools.peers import (
    Candidate,
    Role,
    box_cells,
    call,
    compiled_candidate,
    draw_boxes,
    limit,
    pyramid_candidates,
    region_candidates,
)

FASTER = "▼"  # marks a peer that is faster than sppnet
_BATCH_SECONDS = 2e-3  # shortest interval to time


@dataclass(frozen=True)
class Timing:
    """Microseconds per call and the ratio to sppnet's time in the same round: above 1 is slower than sppnet.

    Quartiles are the first and third.
    """

    name: str
    role: Role
    median_us: float
    quartiles_us: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]
    note: str = ""

    @property
    def lost(self) -> bool:
        """Whether this is a peer that is faster than sppnet."""
        return self.role == "peer" and self.ratio < 1


@dataclass(frozen=True)
class Comparison:
    """Timings of a case, sppnet first; for regions also the share of distinct windows."""

    case: Case
    rounds: int
    timings: tuple[Timing, ...]
    distinct: float | None = None

    def best_peer(self) -> Timing:
        """Return the peer with the smallest median."""
        return min((timing for timing in self.timings if timing.role == "peer"), key=lambda timing: timing.median_us)

    def find(self, name: str) -> Timing | None:
        """Return the timing of the named candidate, or None."""
        return next((timing for timing in self.timings if timing.name == name), None)


def compare(case: Case, budget: float = 1.5, *, compiled: bool = False, rounds: int = 5) -> Comparison:
    """Check the output of every candidate of a case, then time them alternately.

    sppnet is timed twice, as two candidates: the deviation of ``sppnet again`` from 1 is measurement noise.

    Args:
        case: case to time, with a normally distributed map and boxes from :func:`sppnet.tools.peers.proposals`.
        budget: seconds after which no new round starts.
        compiled: whether to also time torch.compile, for whole maps.
        rounds: minimum number of rounds, regardless of `budget`.

    Raises:
        RuntimeError: the output of a peer differs from sppnet's.
    """
    with torch.inference_mode(not case.backward):
        x, out = _maps(case), _vectors(case)
        grad = out if case.backward else None
        boxes = draw_boxes(case) if case.boxes else []
        candidates = region_candidates(case, boxes) if boxes else pyramid_candidates(case)
        if compiled and not boxes:
            candidates.append(compiled_candidate(case, x, grad))
        check(candidates, case)
        calls = {c.name: call(c.form, x, None if grad is None else _first(grad, c.share)) for c in candidates}
        roles: dict[str, Role] = {c.name: c.role for c in candidates}
        calls["sppnet again"], roles["sppnet again"] = calls["sppnet"], "control"
        if case.dtype == "float32":
            calls["limit"], roles["limit"] = limit(case, x, out), "limit"
        wait = None if x.device.type == "cpu" else torch.accelerator.synchronize
        seconds = measure(calls, budget, rounds=rounds, wait=wait)
    for candidate in candidates:
        seconds[candidate.name] /= candidate.share
    timings = summarize(seconds, roles, {c.name: c.note for c in candidates})
    distinct = len(box_cells(boxes, case).unique(dim=0)) / case.boxes if boxes else None
    return Comparison(case, len(seconds["sppnet"]), timings, distinct)


def measure(
    calls: Mapping[str, Callable[[], object]],
    budget: float,
    *,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[], object] | None = None,
) -> dict[str, np.ndarray]:
    """Time calls alternately, in a new random order each round, so that slowdowns of the machine affect all alike.

    Args:
        calls: functions to time. Each is called twice as a warm-up; the second call determines how many repeats fill
            2 ms, for the precision of the clock.
        budget: seconds after which no new round starts.
        rounds: minimum number of rounds, regardless of `budget`.
        clock: function that returns the time in seconds.
        wait: function that synchronizes the device; its time is included.

    Returns:
        For each name, the seconds per call in each round.
    """

    def time_call(name: str, repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            calls[name]()
        if wait is not None:
            wait()
        return (clock() - start) / repeats

    repeats = {}
    for name in calls:
        time_call(name, 1)
        repeats[name] = max(math.ceil(_BATCH_SECONDS / max(time_call(name, 1), 1e-7)), 1)
    generator, names = np.random.default_rng(0), list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    end, done = clock() + budget, 0
    while done < rounds or clock() < end:
        for index in generator.permutation(len(names)):
            name = names[index]
            seconds[name].append(time_call(name, repeats[name]))
        done += 1
    return {name: np.array(values) for name, values in seconds.items()}


def summarize(
    seconds: Mapping[str, np.ndarray], roles: Mapping[str, Role], notes: Mapping[str, str]
) -> tuple[Timing, ...]:
    """Return medians and quartiles of the times and of their per-round ratios to the first name."""
    baseline = next(iter(seconds.values()))
    timings = []
    for name, values in seconds.items():
        low, median, high = (1e6 * np.quantile(values, (0.25, 0.5, 0.75))).tolist()
        first, ratio, third = np.quantile(values / baseline, (0.25, 0.5, 0.75)).tolist()
        timings.append(Timing(name, roles[name], median, (low, high), ratio, (first, third), notes.get(name, "")))
    return tuple(timings)


def check(candidates: Sequence[Candidate], case: Case) -> None:
    """Check that every candidate, except those with the role ``orientation``, computes the same as the first.

    Maxima must be bit-identical. Gradients are always compared in float32: low-precision maps have many ties, and
    candidates may route the gradient to any of the tied cells.

    Raises:
        RuntimeError: a candidate differs; the message names it.
    """
    ours, *others = [candidate for candidate in candidates if candidate.role != "orientation"]
    x = _maps(case)
    expected = ours.form(x).detach()
    tolerance = 0.0 if case.reduce == "max" else 2e-2 if x.element_size() < 4 else 1e-5
    for other in others:
        _check_equal(other.name, "values", other.form(x).detach(), _first(expected, other.share), tolerance)
    if case.backward:
        x, grad = _maps(case, torch.float32), torch.randn_like(expected, dtype=torch.float32)
        for other in others:
            part = _first(grad, other.share)
            (actual,) = torch.autograd.grad(other.form(x), x, part)
            (wanted,) = torch.autograd.grad(ours.form(x)[: len(part)], x, part)
            _check_equal(other.name, "gradients", actual, wanted, 1e-5)


def _check_equal(name: str, quantity: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    if actual.shape != expected.shape:
        raise RuntimeError(f"{name}: expected {quantity} of shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    worst = (actual - expected).abs().max().item()
    if not worst <= tolerance * expected.abs().max().item():
        raise RuntimeError(f"{name}: expected the same {quantity} as sppnet, got a difference of up to {worst:.3g}")


def legend(comparisons: Sequence[Comparison]) -> list[str]:
    """Return an explanation of the tables and the notes on the candidates, as lines."""
    lines = [
        "Values are times relative to sppnet in the same round: median, and quartiles in brackets. Above 1 sppnet is"
        f" faster; {FASTER} marks a peer that is faster than sppnet.",
        "limit: torch reads the input once and writes the output once; 0.5 is half of sppnet's time.",
        "sppnet again: the same function timed as a second candidate; its deviation from 1 is noise.",
    ]
    noted = {timing.name: timing.note for comparison in comparisons for timing in comparison.timings if timing.note}
    notes = {name: re.sub(r"[\d.]+ s to compile", "compile time in the JSON", note) for name, note in noted.items()}
    return lines + [f"{name}: {note}." for name, note in sorted(notes.items())]


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return machine, versions, threads and date of a measurement as JSON-compatible values."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "machine": {
            "cpu": model or platform.processor() or platform.machine(),
            "avx2": capability in ("AVX2", "AVX512"),
            "avx512": capability == "AVX512",
            "cores": os.cpu_count(),
            "os": platform.platform(),
            "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: installed_version(name) for name in ("torch", "torchvision", "numba", "sppnet")},
        },
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S%z"),
    }


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _maps(case: Case, dtype: torch.dtype | None = None) -> Float[Tensor, "n c h w"]:
    """Return a normally distributed map, the same at each call."""
    memory_format = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(0))
    x = x.to(case.device, dtype or getattr(torch, case.dtype)).contiguous(memory_format=memory_format)
    return x.requires_grad_(case.backward)


def _vectors(case: Case) -> Float[Tensor, "k d"]:
    """Return random vectors of the output's shape, used as incoming gradient and as output buffer of `limit`."""
    shape = (case.boxes or case.shape[0], case.shape[1] * count_bins(case.levels))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return x.to(case.device, getattr(torch, case.dtype))


def _first(tensor: Tensor, share: float) -> Tensor:
    return tensor[: round(len(tensor) * share)]
