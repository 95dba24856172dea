"""Request queue: batching, order, waiting, cancellation and errors."""

import gc
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.serving.batcher import Batcher
from tests.helpers.polling import TIMEOUT

Size = tuple[int, int]


class Recorder:
    """Batch function that records its batches, and blocks until `release` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.release = threading.Event()
        self.entered = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.entered.set()
        assert self.release.wait(TIMEOUT)
        self.batches.append(list(items))
        return [item * 10 for item in items]


def batches_of(sizes: Sequence[Size], keys: Sequence[str] | None = None, **options: float) -> list[list[int]]:
    """Return the batches of jobs that arrive while the worker is busy with another job."""
    recorder = Recorder()
    batcher = Batcher(recorder, wait=0.0, **options)  # type: ignore[arg-type]
    batcher.submit(-1, None, (1, 1))
    assert recorder.entered.wait(TIMEOUT)
    names = keys or ["a"] * len(sizes)
    futures = [batcher.submit(n, key, size) for n, (key, size) in enumerate(zip(names, sizes, strict=True))]
    recorder.release.set()
    assert [future.result(TIMEOUT) for future in futures] == [10 * n for n in range(len(sizes))]
    batcher.close()
    return recorder.batches[1:]


def test_equal_sizes_share_a_batch_and_the_oldest_job_is_first() -> None:
    assert batches_of([(10, 20), (10, 10), (10, 20), (10, 10), (10, 20)]) == [[0, 2, 4], [1, 3]]


def test_different_keys_do_not_share_a_batch() -> None:
    assert batches_of([(9, 9)] * 4, ["a", "b", "a", "b"]) == [[0, 2], [1, 3]]


def test_jobs_without_a_key_are_processed_alone() -> None:
    recorder = Recorder()
    batcher = Batcher(recorder, wait=0.0)
    recorder.release.set()
    futures = [batcher.submit(n, None, (9, 9)) for n in range(3)]
    assert [future.result(TIMEOUT) for future in futures] == [0, 10, 20]
    batcher.close()
    assert recorder.batches == [[0], [1], [2]]


def test_batches_respect_the_limits_on_jobs_and_pixels() -> None:
    assert batches_of([(9, 9)] * 5, most=2) == [[0, 1], [2, 3], [4]]
    assert batches_of([(10, 10)] * 5, most_pixels=300) == [[0, 1, 2], [3, 4]]


def test_single_job_may_exceed_the_pixel_limit() -> None:
    assert batches_of([(100, 100), (100, 100)], most_pixels=300) == [[0], [1]]


def test_waste_limits_the_share_of_padding() -> None:
    # 10 x 20 and 10 x 19: 390 of 400 pixels; with 10 x 12: 510 of 600.
    sizes = [(10, 20), (10, 12), (10, 19)]
    assert batches_of(sizes) == [[0], [1], [2]]
    assert batches_of(sizes, waste=0.1) == [[0, 2], [1]]
    assert batches_of(sizes, waste=0.3) == [[0, 1, 2]]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.integers(1, 5),
)
def test_every_job_is_processed_once_and_batches_respect_all_limits(sizes: list[Size], waste: float, most: int) -> None:
    batches = batches_of(sizes, waste=waste, most=most, most_pixels=2000)
    assert sorted(n for batch in batches for n in batch) == list(range(len(sizes)))
    assert [batch[0] for batch in batches] == sorted(batch[0] for batch in batches)
    for batch in batches:
        area = len(batch) * max(sizes[n][0] for n in batch) * max(sizes[n][1] for n in batch)
        used = sum(sizes[n][0] * sizes[n][1] for n in batch)
        assert len(batch) <= most
        assert len(batch) == 1 or (used >= (1 - waste) * area - 1e-6 and area <= 2000)


def test_job_waits_for_others() -> None:
    recorder = Recorder()
    recorder.release.set()
    batcher = Batcher(recorder, wait=2.0)
    start = time.monotonic()
    futures = [batcher.submit(n, "a", (9, 9)) for n in range(2)]
    assert [future.result(TIMEOUT) for future in futures] == [0, 10]
    assert time.monotonic() - start >= 2.0
    batcher.close()
    assert recorder.batches == [[0, 1]]


def test_full_batch_does_not_wait() -> None:
    recorder = Recorder()
    recorder.release.set()
    batcher = Batcher(recorder, wait=100 * TIMEOUT, most=2)
    assert [future.result(TIMEOUT) for future in [batcher.submit(n, "a", (9, 9)) for n in range(2)]] == [0, 10]
    batcher.close()


def test_close_finishes_queued_jobs_and_rejects_new_ones() -> None:
    recorder = Recorder()
    batcher = Batcher(recorder, wait=100 * TIMEOUT)
    futures = [batcher.submit(n, "a", (9, n + 1)) for n in range(3)]
    recorder.release.set()
    batcher.close()
    assert [future.result(0) for future in futures] == [0, 10, 20]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(9, "a", (9, 9))


def test_canceled_jobs_are_skipped() -> None:
    recorder = Recorder()
    batcher = Batcher(recorder, wait=0.0)
    batcher.submit(-1, None, (1, 1))
    assert recorder.entered.wait(TIMEOUT)
    futures = [batcher.submit(n, "a", (9, 9)) for n in range(3)]
    assert futures[1].cancel()
    recorder.release.set()
    batcher.close()
    assert recorder.batches[1:] == [[0, 2]]
    with pytest.raises(CancelledError):
        futures[1].result(0)


def test_failure_affects_only_the_failing_job() -> None:
    def run(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise ValueError("item 1 is invalid")
        return list(items)

    batcher = Batcher(run, wait=TIMEOUT, most=3)
    futures = [batcher.submit(n, "a", (9, 9)) for n in range(3)]
    assert futures[0].result(TIMEOUT) == 0
    assert futures[2].result(TIMEOUT) == 2
    with pytest.raises(ValueError, match="item 1 is invalid"):
        futures[1].result(TIMEOUT)
    batcher.close()


@pytest.mark.parametrize("count", [0, 2])
def test_wrong_number_of_results_is_an_error_of_that_job_only(count: int) -> None:
    def run(items: Sequence[int]) -> list[int]:
        return [7] * count if 1 in items else list(items)

    batcher = Batcher(run, wait=TIMEOUT, most=3)
    futures = [batcher.submit(n, "a", (9, 9)) for n in range(3)]
    assert [futures[n].result(TIMEOUT) for n in (0, 2)] == [0, 2]
    with pytest.raises(RuntimeError, match=f"returned {count} results for 1 items"):
        futures[1].result(TIMEOUT)
    assert batcher.submit(5, None, (9, 9)).result(TIMEOUT) == 5
    batcher.close()


def test_workers_run_in_parallel() -> None:
    both = threading.Barrier(2)

    def run(items: Sequence[int]) -> list[int]:
        both.wait(TIMEOUT)
        return list(items)

    batcher = Batcher(run, workers=2, wait=0.0)
    futures = [batcher.submit(n, None, (9, 9)) for n in range(2)]
    assert [future.result(TIMEOUT) for future in futures] == [0, 1]
    batcher.close()


def test_batch_sizes_are_observed() -> None:
    observed: list[int] = []
    recorder = Recorder()
    recorder.release.set()
    batcher = Batcher(recorder, wait=TIMEOUT, most=3, observe=observed.append)
    for future in [batcher.submit(n, "a", (9, 9)) for n in range(3)]:
        future.result(TIMEOUT)
    batcher.close()
    assert observed == [3]


def test_failed_batches_release_their_memory() -> None:
    """After an out-of-memory error, tensors of the pass must be freed before its jobs are retried one at a time."""
    references: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Large:
        pass

    def fail(items: Sequence[int]) -> list[int]:
        alive.append(sum(reference() is not None for reference in references))
        large = Large()
        references.append(weakref.ref(large))
        raise RuntimeError(f"no memory for {len(items)}")

    gc.collect()
    gc.disable()
    try:
        batcher = Batcher(fail, wait=TIMEOUT, most=3)
        futures = [batcher.submit(n, "a", (9, 9)) for n in range(3)]
        assert all("no memory for 1" in str(future.exception(TIMEOUT)) for future in futures)
        assert alive[1] == 0  # at the first retry
        batcher.close()
        futures.clear()
        assert [reference() for reference in references] == [None] * 4
    finally:
        gc.enable()
