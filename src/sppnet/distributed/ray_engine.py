"""Run tasks in parallel processes on a Ray cluster, and retry the task of a process that died."""

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

from sppnet.errors import check_choice, import_optional

DEVICES = ("auto", "cpu", "cuda")
# A task that has killed this many processes will likely kill the next one too.
_MAX_TRIES = 4
# The local object store of Ray only holds the model and the task texts; results are files.
_STORE_BYTES = 150_000_000


@runtime_checkable
class Job(Protocol):
    """Work to be done by the processes; must be serializable by Ray."""

    def start(self, device: str) -> None:
        """Set up a process; called once, before its first task."""

    def run(self, task: str) -> str:
        """Run a task, write its file and return a result for the caller; may be repeated for the same task."""


@dataclass(frozen=True)
class CompletedTask:
    """A completed task.

    Attributes:
        task: index of the task.
        result: return value of the job.
        tries: number of times the task was started, 1 unless a process died.
    """

    task: int
    result: str
    tries: int


class WorkerError(RuntimeError):
    """Failure of a task for a reason other than an unreadable image."""


@contextmanager
def cluster(address: str | None, actors: int | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start Ray on this machine, for the duration of the block.

    Args:
        address: ``auto``, ``host:port`` or ``ray://host:port``; None to start Ray on this machine.
        actors: number of processes; None for one per CPU.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        OSError: no cluster at the address.
        ValueError: fewer than 1 process, or an invalid address.
    """
    if actors is not None and actors < 1:
        raise ValueError(f"actors: expected at least 1, got {actors}")
    ray = import_ray()
    if address not in (None, "auto"):
        _check_address(str(address))
    local: dict[str, Any] = {}
    if address is None:
        local = {"num_cpus": actors, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # fatal errors are raised
    try:
        with warnings.catch_warnings(), _silence_stderr():
            warnings.simplefilter("ignore")
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        hint = "" if address is None else "; if the cluster requires a token, set RAY_AUTH_MODE=token"
        raise ConnectionError(f"ray_address: cannot reach Ray at {address or 'this machine'}: {error}{hint}") from error
    with redirect_stdout(sys.stderr):  # Ray reports dead processes on standard output
        try:
            yield
        finally:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Fail fast if nothing listens at the address: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"ray_address: expected auto, host:port or ray://host:10001, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"ray_address: no response from {address}: {error}") from error


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Suppress standard error, where Ray's core prints a notice when its log level is set; errors are raised anyway."""
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def run_tasks(job: Job, tasks: Sequence[str], actors: int | None, device: str) -> Iterator[CompletedTask]:
    """Run tasks on the cluster connected by :func:`cluster`, and yield them as they complete, in any order.

    Args:
        job: work to be done; each process has its own copy.
        tasks: task texts for ``job.run``.
        actors: number of processes; None for one per GPU, or one per CPU if no GPU is used.
        device: ``auto``, ``cpu`` or ``cuda``; on GPUs, each process has its own.

    Raises:
        WorkerError: the job raised an error, or several processes died on the same task.
        ValueError: unknown device, or ``cuda`` on a cluster without GPU.
    """
    check_choice("device", device, DEVICES)
    ray = import_ray()
    if ray.util.client.ray.is_connected():  # ray://: Ray Data only runs inside the cluster
        yield from _run_in_cluster(ray, job, tasks, actors, device)
        return
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if device == "cuda" and not gpus:
        raise ValueError("device: expected auto or cpu on a Ray cluster without GPU, got cuda")
    on_gpu = gpus > 0 and device != "cpu"
    count = min(actors or (gpus if on_gpu else max(int(resources.get("CPU", 1)), 1)), len(tasks))
    coordinator = _create_coordinator(ray, job)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = ray.data.from_items(
        [{"number": number, "task": task} for number, task in enumerate(tasks)], override_num_blocks=len(tasks)
    )
    results = rows.map_batches(
        _Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
        fn_constructor_args=(coordinator, "cuda" if on_gpu else device),
    )
    try:
        for row in results.iter_rows():
            if row["error"]:
                raise WorkerError(row["error"])
            yield CompletedTask(int(row["number"]), row["result"], int(row["tries"]))
    except WorkerError:
        raise
    except Exception as error:  # Ray Data raises errors of many types
        raise WorkerError(f"Ray: {type(error).__name__}: {_last_line(str(error))}") from error


class _ClusterRunner:
    """Actor that runs the tasks inside the cluster for a client outside it."""

    def __init__(self, job: Job, tasks: Sequence[str], actors: int | None, device: str) -> None:
        self.done = run_tasks(job, tasks, actors, device)

    def next(self) -> CompletedTask | None:
        return next(self.done, None)


def _run_in_cluster(
    ray: Any, job: Job, tasks: Sequence[str], actors: int | None, device: str
) -> Iterator[CompletedTask]:
    runner = ray.remote(num_cpus=0)(_ClusterRunner).remote(ray.put(job), list(tasks), actors, device)
    try:
        while (done := ray.get(runner.next.remote())) is not None:
            yield done
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise WorkerError(f"Ray: {_last_line(str(error))}") from error


def import_ray() -> Any:
    """Import ray and ray.data, with usage statistics disabled.

    Raises:
        ModuleNotFoundError: Ray is not installed; the message names the extra that installs it.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Otherwise Ray's core warns on standard error, whenever Ray Data is used, that restarts may fail.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import_optional("ray.data", "runs on Ray")
    return import_optional("ray", "runs on Ray")


class _Coordinator:
    """Actor that provides the job to new processes and counts the starts of each task."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tries: dict[int, int] = {}

    def get(self) -> Job:
        return self.job

    def start_task(self, number: int) -> int:
        self.tries[number] = self.tries.get(number, 0) + 1
        return self.tries[number]


def _create_coordinator(ray: Any, job: Job) -> Any:
    """Create the coordinator on the driver's node, which has to stay alive anyway."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, scheduling_strategy=driver_node)(_Coordinator).remote(ray.put(job))


class _Worker:
    """Process that runs tasks; Ray restarts it when it dies and resubmits its current task."""

    def __init__(self, coordinator: Any, device: str) -> None:
        self.ray, self.coordinator = import_ray(), coordinator
        self.job: Job = self.ray.get(coordinator.get.remote())
        self.job.start(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        number, task = int(batch["number"][0]), str(batch["task"][0])
        tries = self.ray.get(self.coordinator.start_task.remote(number))
        result = error = ""
        if tries > _MAX_TRIES:
            error = f"{_MAX_TRIES} processes died on task {_shorten(task)}"
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
