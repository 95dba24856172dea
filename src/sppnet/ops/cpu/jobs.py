"""How kernels are run: a job is a row of int64 in memory, and threads take units of it until none is left.

The threads are those of torch itself, through the OpenMP runtime that it has loaded: others would share the cores with
torch's, which spin for a while after each of its own operators. Where that runtime is another, a pool takes their part.
"""

import array
import ctypes
import functools
import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pickle import UnpicklingError  # numba's files
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba.core import types

from sppnet.ops.cpu.steps import VECTOR

Table = npt.NDArray[np.int64]
_SERIAL = 1 << 16
"""Numbers below which a second thread costs more than it brings."""
_forked = False
_kept: list[Any] = []  # compiled functions, whose addresses are in use


class Tables:
    """What the kernels look up: images, order, starts, plan and edges, see `_kernels.py`."""

    def __init__(self, images: Table, order: Table, starts: Table, plan: Table, edges: Table, clipped: bool) -> None:
        self.kept = (images, order, starts, plan, edges)
        self.windows = len(images)
        self.clipped = clipped
        sizes = (len(images), len(order), len(starts), len(plan), len(edges), edges.shape[1])
        self.head = (*(table.__array_interface__["data"][0] for table in self.kept), *sizes)


def run(
    entry: Callable[..., Any], units: int, work: int, scratch: int, tables: Tables, arguments: tuple[int, ...]
) -> None:
    """Run a kernel.

    Args:
        entry: a function of `_entries.py`.
        units: how many units of work there are.
        work: numbers that are read and written, which decides whether threads pay.
        scratch: vectors of 64 bytes that a thread needs.
        tables: what the kernel looks up.
        arguments: what else the entry wants.
    """
    threads = min(torch.get_num_threads(), units) if work >= _SERIAL and not _forked else 1
    memory = torch.empty((threads * scratch + 1) * VECTOR, dtype=torch.uint8, device="cpu")
    start = -(-memory.data_ptr() // VECTOR) * VECTOR
    chunk = -(-units // (4 * threads)) if threads > 1 else units
    job = array.array("q", (0, 0, units, chunk, start, scratch * VECTOR, *tables.head, *arguments))
    address = job.buffer_info()[0]
    function = _compiled(entry)
    if threads == 1:
        function(address)
    elif (parallel := _openmp()) is not None:
        parallel(function, address, threads, 0)
    else:
        for future in [_pool(threads).submit(function, address) for _ in range(threads)]:
            future.result()


@functools.cache
def _compiled(entry: Callable[..., Any]) -> Any:
    """The entry as a function of C, compiled once and kept on disk; without the lock of Python while it runs."""
    signature, entry = types.void(types.int64), inspect.unwrap(entry)
    try:
        function = numba.cfunc(signature, cache=True, error_model="numpy")(entry)
    except (RuntimeError, OSError, EOFError, UnpicklingError):  # the folder cannot be written, or what is in it read
        function = numba.cfunc(signature, error_model="numpy")(entry)
    _kept.append(function)
    address: Any = function.address
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)


@functools.cache
def _openmp() -> Any:
    """GNU's entry to a parallel region, of the runtime that torch has loaded; None if it is another."""
    try:
        parallel = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "sppnet")


def _after_fork() -> None:
    """Threads do not survive a fork, neither ours nor those of OpenMP."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
