"""Run kernels: a job is a row of int64 in memory, and threads claim units of it until all are taken.

Jobs run on torch's own threads, through the GNU OpenMP runtime that it has loaded: other threads would compete for
cores with torch's, which spin for a while after each operator. With any other runtime, a thread pool is used.
"""

import array
import ctypes
import functools
import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pickle import UnpicklingError  # raised for damaged numba cache files
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba.core import types

from sppnet.ops.cpu.steps import VECTOR

Table = npt.NDArray[np.int64]
_SERIAL = 1 << 16
"""Number of values below which a job uses one thread."""
_forked = False
_compiled_functions: list[Any] = []  # keeps their machine code alive


class Tables:
    """Lookup tables of the kernels: images, order, starts, plan and edges (see `kernels.py` and `entries.py`)."""

    def __init__(self, images: Table, order: Table, starts: Table, plan: Table, edges: Table, clipped: bool) -> None:
        self.arrays = (images, order, starts, plan, edges)
        self.windows = len(images)
        self.clipped = clipped
        sizes = (len(images), len(order), len(starts), len(plan), len(edges), edges.shape[1])
        self.head = (*(table.__array_interface__["data"][0] for table in self.arrays), *sizes)


def run(
    entry: Callable[..., Any], units: int, work: int, scratch: int, tables: Tables, arguments: tuple[int, ...]
) -> None:
    """Run a kernel.

    Args:
        entry: function of `entries.py`.
        units: number of units of work.
        work: number of values read and written, which decides whether more than one thread is used.
        scratch: number of 64-byte vectors of scratch memory per thread.
        tables: lookup tables of the kernel.
        arguments: remaining arguments of the entry.
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
    """Compile the entry to a C function, cached in memory and on disk; it runs without the GIL."""
    signature, entry = types.void(types.int64), inspect.unwrap(entry)
    try:
        function = numba.cfunc(signature, cache=True, error_model="numpy")(entry)
    except (RuntimeError, OSError, EOFError, UnpicklingError):  # cache folder not writable or damaged
        function = numba.cfunc(signature, error_model="numpy")(entry)
    _compiled_functions.append(function)
    address: Any = function.address
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)


@functools.cache
def _openmp() -> Any:
    """Return `GOMP_parallel` of the OpenMP runtime that torch has loaded, or None if it is not GNU's."""
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
    """Run on one thread from now on: neither pool nor OpenMP threads survive a fork."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
