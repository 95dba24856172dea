"""Tasks on a Ray cluster: each is done by one of several processes, and again where a process died."""

import logging
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from sppnet.errors import choose

DEVICES = ("auto", "cpu", "cuda")
# A task that has ended so many processes would end the next one too.
_MOST_TRIES = 4
# Ray's store on this machine holds the model and the tasks' names; results are files.
_STORE_BYTES = 150_000_000


@runtime_checkable
class Job(Protocol):
    """What the processes do; it reaches them as Ray's own serialisation has it."""

    def start(self, device: str) -> None:
        """Called once in each process, before any task."""

    def run(self, task: str) -> str:
        """Do a task and write its file; what it returns reaches the caller. May be called again for the same task."""


@dataclass(frozen=True)
class Done:
    """A task that is done.

    Attributes:
        task: index into the tasks.
        result: what the job returned.
        tries: how often it was begun, 1 unless a process died.
    """

    task: int
    result: str
    tries: int


class WorkerError(RuntimeError):
    """A task could not be done, for a reason that is not one image's."""


@contextmanager
def cluster(address: str | None, actors: int | None) -> Iterator[None]:
    """A connection to a Ray cluster, or a Ray of this machine's own, which ends with the block.

    Args:
        address: ``auto``, ``host:port`` or ``ray://host:port``; None to start one here.
        actors: processes that are wanted; None for as many as there are CPUs.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        OSError: there is no cluster at the address.
        ValueError: fewer than 1 process, or an address of another form.
    """
    if actors is not None and actors < 1:
        raise ValueError(f"actors: expected at least 1 process; got {actors}")
    ray = import_ray()
    if address not in (None, "auto"):
        _knock(str(address))
    local: dict[str, Any] = {}
    if address is None:
        local = {"num_cpus": actors, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what ends the work is raised, and told in a line
    try:
        with warnings.catch_warnings(), _silent():
            warnings.simplefilter("ignore")
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        hint = "" if address is None else "; if the cluster asks for a token, set RAY_AUTH_MODE=token"
        raise ConnectionError(f"ray-address: no Ray at {address or 'this machine'}: {error}{hint}") from error
    with redirect_stdout(sys.stderr):  # Ray tells on standard output of processes that died
        try:
            yield
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """Ray itself would wait for minutes for a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"ray-address: expected auto, host:port or ray://host:10001; got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"ray-address: nobody answers at {address}: {error}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on standard error: Ray's core greets whoever sets its level of messages; what fails is raised."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def run_tasks(job: Job, tasks: Sequence[str], actors: int | None, device: str) -> Iterator[Done]:
    """Do tasks on the cluster that :func:`cluster` is connected to, in any order.

    Args:
        job: what is to be done; each process holds a copy.
        tasks: texts that the job understands.
        actors: processes; None for one a GPU, or one a CPU where the device is the CPU.
        device: ``auto``, ``cpu`` or ``cuda``; each process has a GPU of its own unless it is the CPU.

    Raises:
        WorkerError: a process met an error, or several died of the same task.
        ValueError: the device is none of these, or the cluster has no GPU.
    """
    choose("device", device, DEVICES)
    ray = import_ray()
    if ray.util.client.ray.is_connected():  # ray://: Ray Data itself runs inside the cluster only
        yield from _run_inside(ray, job, tasks, actors, device)
        return
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if device == "cuda" and not gpus:
        raise ValueError("device: the Ray cluster has no GPU for cuda; expected auto or cpu")
    on_gpu = gpus > 0 and device != "cpu"
    count = min(actors or (gpus if on_gpu else max(int(resources.get("CPU", 1)), 1)), len(tasks))
    desk = _create_desk(ray, job)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = ray.data.from_items(
        [{"number": number, "task": task} for number, task in enumerate(tasks)], override_num_blocks=len(tasks)
    )
    done = rows.map_batches(
        _Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
        fn_constructor_args=(desk, "cuda" if on_gpu else device),
    )
    try:
        for row in done.iter_rows():
            if row["error"]:
                raise WorkerError(row["error"])
            yield Done(int(row["number"]), row["result"], int(row["tries"]))
    except WorkerError:
        raise
    except Exception as error:  # Ray Data passes on whatever its parts raise
        raise WorkerError(f"Ray: {type(error).__name__}: {_last_line(str(error))}") from error


class _Inside:
    """Runs the tasks from within the cluster, for a caller outside."""

    def __init__(self, job: Job, tasks: Sequence[str], actors: int | None, device: str) -> None:
        self.done = run_tasks(job, tasks, actors, device)

    def next(self) -> Done | None:
        return next(self.done, None)


def _run_inside(ray: Any, job: Job, tasks: Sequence[str], actors: int | None, device: str) -> Iterator[Done]:
    inside = ray.remote(num_cpus=0)(_Inside).remote(ray.put(job), list(tasks), actors, device)
    try:
        while (done := ray.get(inside.next.remote())) is not None:
            yield done
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise WorkerError(f"Ray: {_last_line(str(error))}") from error


def import_ray() -> Any:
    """The module ray, with ray.data; it is kept from sending statistics of its use.

    Raises:
        ModuleNotFoundError: saying how to install it.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's core tells each user of Ray Data on standard error that restarts of its processes may fail.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('--engine ray needs Ray Data; install it with pip install "sppnet[ray]"') from error
    return ray


class _Desk:
    """Holds the job for processes that begin, and counts how often each task was begun."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tries: dict[int, int] = {}

    def get(self) -> Job:
        return self.job

    def begin(self, number: int) -> int:
        self.tries[number] = self.tries.get(number, 0) + 1
        return self.tries[number]


def _create_desk(ray: Any, job: Job) -> Any:
    """The desk, beside the driver, whose machine must live anyway."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Desk).remote(ray.put(job))


class _Worker:
    """One process; Ray begins it again when it dies, and gives it the task again that it was at."""

    def __init__(self, desk: Any, device: str) -> None:
        self.ray, self.desk = import_ray(), desk
        self.job: Job = self.ray.get(desk.get.remote())
        self.job.start(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        number, task = int(batch["number"][0]), str(batch["task"][0])
        tries = self.ray.get(self.desk.begin.remote(number))
        result = error = ""
        if tries > _MOST_TRIES:
            error = f"{_MOST_TRIES} processes died at {_shorten(task)}"
        else:
            try:
                result = self.job.run(task)
            except Exception as caught:
                trace = traceback.extract_tb(caught.__traceback__)[-1]
                error = f"{type(caught).__name__}: {caught} ({trace.name}, line {trace.lineno} of {trace.filename})"
        return {"number": [number], "result": [result], "error": [error], "tries": [tries]}


def _shorten(task: str) -> str:
    return task if len(task) <= 200 else f"{task[:200]}..."


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")
