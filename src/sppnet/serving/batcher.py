"""Request queue that batches inputs of similar sizes."""

import threading
import time
import traceback
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Job(Generic[T, R]):
    """A queued item and the future of its result.

    Attributes:
        item: input of the batch function.
        key: batching key; only jobs with equal keys share a batch. None: the job is processed alone.
        size: (height, width) in pixels, used to keep padding small.
        future: future of the result.
        arrived: arrival time in seconds of the monotonic clock.
    """

    item: T
    key: Hashable
    size: tuple[int, int]
    future: Future[R] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher(Generic[T, R]):
    """Worker threads that process jobs in batches of similar size.

    Each batch starts with the oldest job, so rare sizes are not delayed by frequent ones. That job waits at most `wait`
    seconds after its arrival for others to join its batch; time during which all workers are busy counts too.

    Args:
        answer: batch function; returns one result per item, in order. If it fails for several items, it is called for
            each of them alone, so that an item cannot make others fail.
        workers: number of threads, at least 1.
        threads: torch threads of each worker.
        wait: longest wait in seconds for a batch to fill, at least 0.
        most: largest number of jobs in a batch, at least 1.
        most_pixels: largest padded area of a batch in pixels; a single job may exceed it.
        waste: largest share of padding in a batch, in [0, 1); 0 batches equal sizes only.
        observe: function that is called with the size of each batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[T]], Sequence[R]],
        *,
        workers: int = 1,
        threads: int = 1,
        wait: float = 0.005,
        most: int = 8,
        most_pixels: int = 2_000_000,
        waste: float = 0.0,
        observe: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._answer = answer
        self._wait, self._most, self._most_pixels, self._waste = wait, most, most_pixels, waste
        self._observe = observe
        self._threads = threads
        self._waiting: list[Job[T, R]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._workers = [threading.Thread(target=self._work, name=f"worker-{n}", daemon=True) for n in range(workers)]
        for worker in self._workers:
            worker.start()

    def submit(self, item: T, key: Hashable, size: tuple[int, int]) -> Future[R]:
        """Queue an item and return the future of its result.

        Raises:
            RuntimeError: the queue is closed.
        """
        job: Job[T, R] = Job(item, key, size)
        with self._changed:
            if self._closing:
                raise RuntimeError("the queue is closed")
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    @property
    def waiting(self) -> int:
        """Number of jobs that no worker has started."""
        return len(self._waiting)

    def close(self) -> None:
        """Reject new items, finish all queued jobs, and stop the workers."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        while batch := self._next():
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if batch:
                self._observe(len(batch))
                self._run(batch)

    def _next(self) -> list[Job[T, R]]:
        """Wait for the next batch; return an empty one if the queue is closed and empty."""
        with self._changed:
            while True:
                self._waiting = [job for job in self._waiting if not job.future.cancelled()]
                if not self._waiting:
                    if self._closing:
                        return []
                    self._changed.wait()
                    continue
                batch = self._batch_of(self._waiting[0])
                remaining = self._waiting[0].arrived + self._wait - time.monotonic()
                if remaining <= 0 or self._closing or len(batch) == self._most or batch[0].key is None:
                    taken = {id(job) for job in batch}
                    self._waiting = [job for job in self._waiting if id(job) not in taken]
                    return batch
                self._changed.wait(remaining)

    def _batch_of(self, first: Job[T, R]) -> list[Job[T, R]]:
        """Return the first job and the later ones that can share its batch."""
        batch, (height, width), pixels = [first], first.size, first.size[0] * first.size[1]
        if first.key is None:
            return batch
        for job in self._waiting:
            if job is first or job.key != first.key or len(batch) == self._most:
                continue
            padded_height, padded_width = max(height, job.size[0]), max(width, job.size[1])
            area = (len(batch) + 1) * padded_height * padded_width
            used = pixels + job.size[0] * job.size[1]
            if area <= self._most_pixels and used >= (1 - self._waste) * area:
                batch.append(job)
                height, width, pixels = padded_height, padded_width, used
        return batch

    def _run(self, batch: list[Job[T, R]]) -> None:
        if not self._try(batch):
            while batch:
                self._try([batch.pop(0)])

    def _try(self, batch: list[Job[T, R]]) -> bool:
        """Set the results of a batch, or the error of a single job; return False if a batch of several failed."""
        try:
            answers = self._answer([job.item for job in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"the batch function returned {len(answers)} results for {len(batch)} items")
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # frees the tensors of the pass before the next one
            if len(batch) > 1:
                return False
            # Remove the job from the list: the traceback holds this frame, so the error would refer to itself.
            batch.pop().future.set_exception(error)
            return True
        for job, answer in zip(batch, answers, strict=True):
            job.future.set_result(answer)
        return True
