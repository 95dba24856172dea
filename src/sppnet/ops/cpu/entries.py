"""Where threads enter the kernels: one function for each kind of number, its only argument the address of the job.

A job's first numbers: units taken, threads come, units in all, units at a time, scratch and its size for a thread;
then the addresses of images, order, starts, plan and edges and their sizes; then the arguments of the kernel.
"""

import numpy as np
from numba import carray

from sppnet.ops.cpu.kernels import pool_cells, pool_planes
from sppnet.ops.cpu.scatter import scatter, spread
from sppnet.ops.cpu.simd import fetch_add, pointer
from sppnet.ops.cpu.steps import inline


def planes_float32(address):
    _planes(np.float32(0), 4, address)


def planes_bfloat16(address):
    _planes(np.uint16(0), 2, address)


def cells_float32(address):
    _cells(np.float32(0), 4, np.float32(0), 4, address)


def cells_bfloat16(address):
    _cells(np.uint16(0), 2, np.uint16(0), 2, address)


def packed_bfloat16(address):
    _cells(np.float32(0), 4, np.uint16(0), 2, address)


def scatter_float32(address):
    _scatter(np.float32(0), 4, np.float32(0), address)


def scatter_bfloat16(address):
    _scatter(np.uint16(0), 2, np.uint16(0), address)


def scatter_wide_bfloat16(address):
    _scatter(np.uint16(0), 2, np.float32(0), address)


def spread_float32(address):
    _spread(np.float32(0), 4, address)


def spread_bfloat16(address):
    _spread(np.uint16(0), 2, address)


@inline
def _planes(kind, item, address):
    job, images, order, starts, plan, edges = _open(address)
    x, maps, channels, height, width, clipped, mode, out, cells = _nine(job)
    scratch, begin = _scratch(address), _units(address)
    while begin < job[2]:
        end = min(begin + job[3], job[2])
        pool_planes(
            kind, item, x, (maps, channels, height, width), edges, plan, clipped != 0, mode, images, order, starts, out,
            cells, scratch, begin, end,
        )  # fmt: skip
        begin = _units(address)


@inline
def _cells(kind, item, out_kind, out_item, address):
    job, images, order, starts, plan, edges = _open(address)
    x, image_step, channel_step, cell_step, width, channels, most, clipped, mode = _nine(job)
    out, cells, stream = job[26], job[27], job[28]
    scratch, begin = _scratch(address), _units(address)
    while begin < job[2]:
        end = min(begin + job[3], job[2])
        pool_cells(
            kind, item, x, image_step, channel_step, cell_step, width, channels, most, edges, plan, clipped != 0,
            mode, images, order, starts, out_kind, out_item, out, cells, stream != 0, scratch, begin, end,
        )  # fmt: skip
        begin = _units(address)


@inline
def _scatter(kind, item, total_kind, address):
    job, _, order, starts, plan, _ = _open(address)
    grad, cells, channels, share, total, image_step, channel_step, cell_step, zeroed = _nine(job)
    begin = _units(address)
    while begin < job[2]:
        end = min(begin + job[3], job[2])
        scatter(
            kind, item, total_kind, grad, cells, plan, channels, share, order, starts, total, image_step, channel_step,
            cell_step, zeroed != 0, begin, end,
        )  # fmt: skip
        begin = _units(address)


@inline
def _spread(kind, item, address):
    job, _, order, starts, plan, edges = _open(address)
    grad, channels, width, height, total, _, _, _, _ = _nine(job)
    begin = _units(address)
    while begin < job[2]:
        end = min(begin + job[3], job[2])
        spread(kind, item, grad, edges, plan, channels, width, height, order, starts, total, begin, end)
        begin = _units(address)


@inline
def _open(address):
    """The job and its tables."""
    job = carray(pointer(address), 40, np.int64)
    images = carray(pointer(job[6]), job[11], np.int64)
    order = carray(pointer(job[7]), job[12], np.int64)
    starts = carray(pointer(job[8]), job[13], np.int64)
    plan = carray(pointer(job[9]), (job[14], 6), np.int64)
    edges = carray(pointer(job[10]), (job[15], job[16], 2), np.int64)
    return job, images, order, starts, plan, edges


@inline
def _nine(job):
    return job[17], job[18], job[19], job[20], job[21], job[22], job[23], job[24], job[25]


@inline
def _units(address):
    """The first of the units that this thread does next."""
    job = carray(pointer(address), 4, np.int64)
    return fetch_add(address, job[3])


@inline
def _scratch(address):
    job = carray(pointer(address), 6, np.int64)
    return job[4] + fetch_add(address + 8, 1) * job[5]
