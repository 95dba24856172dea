"""The queue of the server: who shares a batch, in which order, and what becomes of what was taken."""

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

Size = tuple[int, int]


class Recorder:
    """Answers with what it was given, and keeps the batches; `gate` holds the first one back."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.entered = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.entered.set()
        assert self.gate.wait(10)
        self.batches.append(list(items))
        return [item * 10 for item in items]


def together(sizes: Sequence[Size], keys: Sequence[str] | None = None, **options: float) -> list[list[int]]:
    """The batches of jobs that arrive while one worker is busy with a job of its own."""
    answer = Recorder()
    queue = Batcher(answer, wait=0.0, **options)  # type: ignore[arg-type]
    queue.submit(-1, None, (1, 1))
    assert answer.entered.wait(10)
    names = keys or ["a"] * len(sizes)
    futures = [queue.submit(n, key, size) for n, (key, size) in enumerate(zip(names, sizes, strict=True))]
    answer.gate.set()
    assert [future.result(10) for future in futures] == [10 * n for n in range(len(sizes))]
    queue.close()
    return answer.batches[1:]


def test_jobs_of_equal_size_share_a_batch_and_the_oldest_goes_first() -> None:
    assert together([(10, 20), (10, 10), (10, 20), (10, 10), (10, 20)]) == [[0, 2, 4], [1, 3]]


def test_jobs_of_different_keys_share_none() -> None:
    assert together([(9, 9)] * 4, ["a", "b", "a", "b"]) == [[0, 2], [1, 3]]


def test_a_job_without_a_key_is_alone() -> None:
    queue = Recorder()
    batcher = Batcher(queue, wait=0.0)
    queue.gate.set()
    futures = [batcher.submit(n, None, (9, 9)) for n in range(3)]
    assert [future.result(10) for future in futures] == [0, 10, 20]
    batcher.close()
    assert queue.batches == [[0], [1], [2]]


def test_a_batch_has_at_most_so_many_jobs_and_pixels() -> None:
    assert together([(9, 9)] * 5, most=2) == [[0, 1], [2, 3], [4]]
    assert together([(10, 10)] * 5, most_pixels=300) == [[0, 1, 2], [3, 4]]


def test_one_job_may_have_more_pixels_than_a_batch() -> None:
    assert together([(100, 100), (100, 100)], most_pixels=300) == [[0], [1]]


def test_sizes_are_alike_as_long_as_little_is_padding() -> None:
    # 10 x 20 and 10 x 19: 390 of 400 pixels; with 10 x 12: 510 of 600.
    sizes = [(10, 20), (10, 12), (10, 19)]
    assert together(sizes) == [[0], [1], [2]]
    assert together(sizes, waste=0.1) == [[0, 2], [1]]
    assert together(sizes, waste=0.3) == [[0, 1, 2]]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.integers(1, 5),
)
def test_every_job_is_answered_once_and_no_batch_wastes_more(sizes: list[Size], waste: float, most: int) -> None:
    batches = together(sizes, waste=waste, most=most, most_pixels=2000)
    assert sorted(n for batch in batches for n in batch) == list(range(len(sizes)))
    assert [batch[0] for batch in batches] == sorted(batch[0] for batch in batches)  # the oldest goes first
    for batch in batches:
        area = len(batch) * max(sizes[n][0] for n in batch) * max(sizes[n][1] for n in batch)
        own = sum(sizes[n][0] * sizes[n][1] for n in batch)
        assert len(batch) <= most
        assert len(batch) == 1 or (own >= (1 - waste) * area - 1e-6 and area <= 2000)


def test_a_job_waits_for_others_and_then_no_longer() -> None:
    answer = Recorder()
    answer.gate.set()
    queue = Batcher(answer, wait=0.3)
    begun = time.monotonic()
    first = queue.submit(0, "a", (9, 9))
    second = queue.submit(1, "a", (9, 9))
    assert (first.result(10), second.result(10)) == (0, 10)
    assert time.monotonic() - begun >= 0.3
    queue.close()
    assert answer.batches == [[0, 1]]


def test_a_full_batch_does_not_wait() -> None:
    answer = Recorder()
    answer.gate.set()
    queue = Batcher(answer, wait=60.0, most=2)
    assert [future.result(10) for future in [queue.submit(n, "a", (9, 9)) for n in range(2)]] == [0, 10]
    queue.close()


def test_closing_answers_what_was_taken_and_takes_nothing_more() -> None:
    answer = Recorder()
    queue = Batcher(answer, wait=60.0)
    futures = [queue.submit(n, "a", (9, n + 1)) for n in range(3)]
    answer.gate.set()
    queue.close()
    assert [future.result(0) for future in futures] == [0, 10, 20]
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(9, "a", (9, 9))


def test_a_job_that_is_taken_back_is_not_answered() -> None:
    answer = Recorder()
    queue = Batcher(answer, wait=0.0)
    queue.submit(-1, None, (1, 1))
    assert answer.entered.wait(10)
    futures = [queue.submit(n, "a", (9, 9)) for n in range(3)]
    assert futures[1].cancel()
    answer.gate.set()
    queue.close()
    assert answer.batches[1:] == [[0, 2]]
    with pytest.raises(CancelledError):
        futures[1].result(0)


def test_a_failure_is_only_that_of_the_job_that_fails() -> None:
    def answer(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise ValueError("one is bad")
        return list(items)

    queue = Batcher(answer, wait=0.1)
    futures = [queue.submit(n, "a", (9, 9)) for n in range(3)]
    assert futures[0].result(10) == 0
    assert futures[2].result(10) == 2
    with pytest.raises(ValueError, match="one is bad"):
        futures[1].result(10)
    queue.close()


def test_workers_answer_side_by_side() -> None:
    both = threading.Barrier(2)

    def answer(items: Sequence[int]) -> list[int]:
        both.wait(10)
        return list(items)

    queue = Batcher(answer, workers=2, wait=0.0)
    futures = [queue.submit(n, None, (9, 9)) for n in range(2)]
    assert [future.result(10) for future in futures] == [0, 1]
    queue.close()


def test_the_size_of_each_batch_is_told() -> None:
    seen: list[int] = []
    answer = Recorder()
    answer.gate.set()
    queue = Batcher(answer, wait=0.2, observe=seen.append)
    for future in [queue.submit(n, "a", (9, 9)) for n in range(3)]:
        future.result(10)
    queue.close()
    assert seen == [3]


def test_what_failed_holds_no_memory() -> None:
    """Tensors of a pass that failed for want of memory must be gone when its jobs are tried one by one, and later."""
    held: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Large:
        pass

    def fail(items: Sequence[int]) -> list[int]:
        alive.append(sum(one() is not None for one in held))
        large = Large()
        held.append(weakref.ref(large))
        raise RuntimeError(f"no memory for {len(items)}")

    gc.collect()
    gc.disable()
    try:
        batcher = Batcher(fail, wait=0.05, most=3)
        futures = [batcher.submit(n, "a", (9, 9)) for n in range(3)]
        assert all("no memory for 1" in str(future.exception(10)) for future in futures)
        assert alive[1] == 0  # at the first that is tried by itself
        batcher.close()
        futures.clear()
        assert [one() for one in held] == [None] * 4
    finally:
        gc.enable()
