"""The queue between the requests and the network: those of like size go through it together."""

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
    """Something that waits for its answer.

    Attributes:
        item: what is asked.
        key: jobs of equal keys may share a batch; None for a job that shares none.
        size: (height, width) in pixels that the network will see.
        future: of the answer.
        arrived: seconds, by the monotonic clock.
    """

    item: T
    key: Hashable
    size: tuple[int, int]
    future: Future[R] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher(Generic[T, R]):
    """Worker threads that answer what is submitted, the oldest first, together with others of like size.

    A job waits at most `wait` seconds for others to share its batch; when all workers are busy it waits no longer than
    they are. So no size is put off because another is more frequent.

    Args:
        answer: gives the answers of a batch, in order. If it fails for several they are asked for one by one, so that
            none fails for another's sake.
        workers: threads, at least 1.
        threads: of torch, in each worker.
        wait: seconds, at least 0.
        most: jobs of a batch, at least 1.
        most_pixels: of a batch, by its largest height and width; one job alone may have more.
        waste: share of a batch that may be padding, in [0, 1); 0 for batches of equal size only.
        observe: is told the size of each batch.
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
        """Put something into the queue.

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
        """How many jobs no worker has taken yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Take nothing more, answer all that was taken, and end the workers."""
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
        """The next batch; nothing once the queue is closed and empty."""
        with self._changed:
            while True:
                self._waiting = [job for job in self._waiting if not job.future.cancelled()]
                if not self._waiting:
                    if self._closing:
                        return []
                    self._changed.wait()
                    continue
                batch = self._like(self._waiting[0])
                left = self._waiting[0].arrived + self._wait - time.monotonic()
                if left <= 0 or self._closing or len(batch) == self._most or batch[0].key is None:
                    taken = {id(job) for job in batch}
                    self._waiting = [job for job in self._waiting if id(job) not in taken]
                    return batch
                self._changed.wait(left)

    def _like(self, first: Job[T, R]) -> list[Job[T, R]]:
        """The first job and those behind it that may share its batch."""
        batch, (height, width), pixels = [first], first.size, first.size[0] * first.size[1]
        if first.key is None:
            return batch
        for job in self._waiting:
            if job is first or job.key != first.key or len(batch) == self._most:
                continue
            tall, wide = max(height, job.size[0]), max(width, job.size[1])
            area, own = (len(batch) + 1) * tall * wide, pixels + job.size[0] * job.size[1]
            if area <= self._most_pixels and own >= (1 - self._waste) * area:
                batch.append(job)
                height, width, pixels = tall, wide, own
        return batch

    def _run(self, batch: list[Job[T, R]]) -> None:
        if not self._try(batch):
            while batch:
                self._try([batch.pop(0)])

    def _try(self, batch: list[Job[T, R]]) -> bool:
        """Answer a batch, or a job with its error; False where one of several has failed."""
        try:
            answers = self._answer([job.item for job in batch])
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # of the tensors of the pass, before there is another
            if len(batch) > 1:
                return False
            # Out of the list: the error holds the frames that hold it, and would with its job hold itself.
            batch.pop().future.set_exception(error)
            return True
        for job, answer in zip(batch, answers, strict=True):
            job.future.set_result(answer)
        return True
