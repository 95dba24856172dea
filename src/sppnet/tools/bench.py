"""How fast the operators are beside their peers: all candidates of a case timed in turns, and checked first."""

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

from sppnet.ops.bins import count_bins
from sppnet.tools.peers import (
    Candidate,
    Case,
    Role,
    box_cells,
    call,
    compiled_candidate,
    draw_boxes,
    limit,
    pyramid_candidates,
    region_candidates,
)

FASTER = "▼"  # marks a peer that is faster than ours
_BATCH_SECONDS = 2e-3  # what the clock must see at a time


@dataclass(frozen=True)
class Timing:
    """Microseconds a call, and the ratio to our time of the same round: above 1 is slower than ours.

    Quartiles are the first and the third.
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
        """Whether this peer is faster than ours."""
        return self.role == "peer" and self.ratio < 1


@dataclass(frozen=True)
class Comparison:
    """The timings of a case, ours first; of regions also the share of windows that are not copies of another."""

    case: Case
    rounds: int
    timings: tuple[Timing, ...]
    distinct: float | None = None

    def best_peer(self) -> Timing:
        """The exact peer with the smallest median."""
        return min((timing for timing in self.timings if timing.role == "peer"), key=lambda timing: timing.median_us)

    def find(self, name: str) -> Timing | None:
        """The candidate of that name, if the case has it."""
        return next((timing for timing in self.timings if timing.name == name), None)


def compare(case: Case, budget: float = 1.5, *, compiled: bool = False, rounds: int = 5) -> Comparison:
    """Check every candidate of a case against ours and time them in turns.

    Ours is timed twice, as two candidates: the ratio of ``sppnet again`` tells what ratios mean nothing.

    Args:
        case: the case; the map holds normal numbers, boxes are :func:`sppnet.tools.peers.proposals`.
        budget: seconds after which no further round begins.
        compiled: whether torch.compile of the plain form is timed too, for whole maps.
        rounds: fewest rounds, whatever the budget.

    Raises:
        RuntimeError: a peer does not give what ours gives.
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
    timings = summarise(seconds, roles, {c.name: c.note for c in candidates})
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
    """Time calls in turns, in a new order each round, so that what slows the machine for a while slows them all.

    Args:
        calls: what is timed. Two calls of each come first and do not count; the second tells how many in a row take
            2 ms, so that the clock is exact enough.
        budget: seconds after which no further round begins.
        rounds: fewest rounds, whatever the budget.
        clock: gives seconds.
        wait: waits for the device; timed with the calls.

    Returns:
        For each name the seconds of one call, one number a round.
    """

    def seconds_of(name: str, repeats: int) -> float:
        begin = clock()
        for _ in range(repeats):
            calls[name]()
        if wait is not None:
            wait()
        return (clock() - begin) / repeats

    repeats = {}
    for name in calls:
        seconds_of(name, 1)
        repeats[name] = max(math.ceil(_BATCH_SECONDS / max(seconds_of(name, 1), 1e-7)), 1)
    generator, names = np.random.default_rng(0), list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    end, done = clock() + budget, 0
    while done < rounds or clock() < end:
        for index in generator.permutation(len(names)):
            name = names[index]
            seconds[name].append(seconds_of(name, repeats[name]))
        done += 1
    return {name: np.array(values) for name, values in seconds.items()}


def summarise(
    seconds: Mapping[str, np.ndarray], roles: Mapping[str, Role], notes: Mapping[str, str]
) -> tuple[Timing, ...]:
    """Medians and quartiles of the times, and of their ratios to the first name's, round by round."""
    ours = next(iter(seconds.values()))
    timings = []
    for name, values in seconds.items():
        low, median, high = (1e6 * np.quantile(values, (0.25, 0.5, 0.75))).tolist()
        first, ratio, third = np.quantile(values / ours, (0.25, 0.5, 0.75)).tolist()
        timings.append(Timing(name, roles[name], median, (low, high), ratio, (first, third), notes.get(name, "")))
    return tuple(timings)


def check(candidates: Sequence[Candidate], case: Case) -> None:
    """See that every exact candidate gives what the first one gives.

    Maxima are compared bit for bit. Gradients are compared in float32, whatever the dtype of the case: numbers of
    few bits are often equal, and of equal maxima a form may choose any.

    Raises:
        RuntimeError: naming the candidate that differs.
    """
    ours, *others = [candidate for candidate in candidates if candidate.role != "orientation"]
    x = _maps(case)
    expected = ours.form(x).detach()
    tolerance = 0.0 if case.reduce == "max" else 2e-2 if x.element_size() < 4 else 1e-5
    for other in others:
        _same(other.name, "values", other.form(x).detach(), _first(expected, other.share), tolerance)
    if case.backward:
        x, grad = _maps(case, torch.float32), torch.randn_like(expected, dtype=torch.float32)
        for other in others:
            part = _first(grad, other.share)
            (found,) = torch.autograd.grad(other.form(x), x, part)
            (wanted,) = torch.autograd.grad(ours.form(x)[: len(part)], x, part)
            _same(other.name, "gradients", found, wanted, 1e-5)


def _same(name: str, what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    if found.shape != expected.shape:
        shapes = f"{tuple(found.shape)}, and sppnet's {tuple(expected.shape)}"
        raise RuntimeError(f"{name} is no peer: its {what} have the shape {shapes}")
    worst = (found - expected).abs().max().item()
    if not worst <= tolerance * expected.abs().max().item():
        raise RuntimeError(f"{name} is no peer: its {what} differ from sppnet's by up to {worst:.3g}")


def legend(comparisons: Sequence[Comparison]) -> list[str]:
    """How to read the tables, and the notes of the candidates."""
    lines = [
        "Numbers are times divided by sppnet's own of the same round: the median, and in brackets the quartiles."
        f" Above 1 sppnet is faster; {FASTER} marks a peer that is faster than sppnet.",
        "limit: torch reads once what is read and writes once what is written; 0.5 is half as long as sppnet takes.",
        "sppnet again: the same function as a second candidate; what it differs from 1 by means nothing elsewhere.",
    ]
    noted = {timing.name: timing.note for comparison in comparisons for timing in comparison.timings if timing.note}
    notes = {name: re.sub(r"[\d.]+ s once", "seconds of compilation in the JSON", note) for name, note in noted.items()}
    return lines + [f"{name}: {note}." for name, note in sorted(notes.items())]


def environment(device: str = "cpu") -> dict[str, Any]:
    """Machine, versions, threads and time of a measurement, ready for JSON."""
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
            **{name: _version(name) for name in ("torch", "torchvision", "numba", "sppnet")},
        },
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S%z"),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _maps(case: Case, dtype: torch.dtype | None = None) -> Float[Tensor, "n c h w"]:
    """The same normal numbers at each call, rounded to the dtype."""
    memory_format = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(0))
    x = x.to(case.device, dtype or getattr(torch, case.dtype)).contiguous(memory_format=memory_format)
    return x.requires_grad_(case.backward)


def _vectors(case: Case) -> Float[Tensor, "k d"]:
    """Of the shape of the result: the gradient that comes in, and where the limit writes."""
    shape = (case.boxes or case.shape[0], case.shape[1] * count_bins(case.levels))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return x.to(case.device, getattr(torch, case.dtype))


def _first(tensor: Tensor, share: float) -> Tensor:
    return tensor[: round(len(tensor) * share)]
