"""Entry points of the kernels, one per dtype; every thread calls one with the address of the same job.

A job is a row of int64: units taken, threads started, number of units, units per step, scratch address, scratch bytes
per thread; the addresses of images, order, starts, plan and edges, then their sizes; the arguments of the kernel.
"""

import numpy as np
from numba import carray

from sppnet.ops.cpu.kernels import pool_cells, pool_planes
from sppnet.ops.cpu.scatter import scatter, spread
from sppnet.ops.cpu.simd import fetch_add, pointer
from sppnet.ops.cpu.steps import inline


def planes_float32(address):
    """Pool contiguous float32 maps."""
    _planes(np.float32(0), 4, address)


def planes_bfloat16(address):
    """Pool contiguous bfloat16 maps."""
    _planes(np.uint16(0), 2, address)


def cells_float32(address):
    """Pool channels_last or packed float32 maps."""
    _cells(np.float32(0), 4, np.float32(0), 4, address)


def cells_bfloat16(address):
    """Pool channels_last bfloat16 maps."""
    _cells(np.uint16(0), 2, np.uint16(0), 2, address)


def packed_bfloat16(address):
    """Pool bfloat16 maps from a packed float32 copy."""
    _cells(np.float32(0), 4, np.uint16(0), 2, address)


def scatter_float32(address):
    """Scatter float32 gradients of maxima."""
    _scatter(np.float32(0), 4, np.float32(0), address)


def scatter_bfloat16(address):
    """Scatter bfloat16 gradients of maxima and sum them in bfloat16."""
    _scatter(np.uint16(0), 2, np.uint16(0), address)


def scatter_wide_bfloat16(address):
    """Scatter bfloat16 gradients of maxima and sum them in float32."""
    _scatter(np.uint16(0), 2, np.float32(0), address)


def spread_float32(address):
    """Spread float32 gradients of means."""
    _spread(np.float32(0), 4, address)


def spread_bfloat16(address):
    """Spread bfloat16 gradients of means and sum them in float32."""
    _spread(np.uint16(0), 2, address)


@inline
def _planes(kind, item, address):
    job, images, order, starts, plan, edges = _tables(address)
    x, maps, channels, height, width, clipped, mode, out, cells = _arguments(job)
    scratch, begin = _scratch(address), _claim(address)
    while begin < job[2]:
        end = min(begin + job[3], job[2])
        pool_planes(
            kind, item, x, (maps, channels, height, width), edges, plan, clipped != 0, mode, images, order, starts, out,
            cells, scratch, begin, end,
        )  # fmt: skip
        begin = _claim(address)


@inline
def _cells(kind, item, out_kind, out_item, address):
    job, images, order, starts, plan, edges = _tables(address)
    x, image_step, channel_step, cell_step, width, channels, max_groups, clipped, mode = _arguments(job)
    out, cells, stream = job[26], job[27], job[28]
    scratch, begin = _scratch(address), _claim(address)
    while begin < job[2]:
        end = min(begin + job[3], job[2])
        pool_cells(
            kind, item, x, image_step, channel_step, cell_step, width, channels, max_groups, edges, plan, clipped != 0,
            mode, images, order, starts, out_kind, out_item, out, cells, stream != 0, scratch, begin, end,
        )  # fmt: skip
        begin = _claim(address)


@inline
def _scatter(kind, item, total_kind, address):
    job, _, order, starts, plan, _ = _tables(address)
    grad, cells, channels, block, total, image_step, channel_step, cell_step, zeroed = _arguments(job)
    begin = _claim(address)
    while begin < job[2]:
        end = min(begin + job[3], job[2])
        scatter(
            kind, item, total_kind, grad, cells, plan, channels, block, order, starts, total, image_step, channel_step,
            cell_step, zeroed != 0, begin, end,
        )  # fmt: skip
        begin = _claim(address)


@inline
def _spread(kind, item, address):
    job, _, order, starts, plan, edges = _tables(address)
    grad, channels, width, height, total, _, _, _, _ = _arguments(job)
    begin = _claim(address)
    while begin < job[2]:
        end = min(begin + job[3], job[2])
        spread(kind, item, grad, edges, plan, channels, width, height, order, starts, total, begin, end)
        begin = _claim(address)


@inline
def _tables(address):
    """Return the job and its tables."""
    job = carray(pointer(address), 40, np.int64)
    images = carray(pointer(job[6]), job[11], np.int64)
    order = carray(pointer(job[7]), job[12], np.int64)
    starts = carray(pointer(job[8]), job[13], np.int64)
    plan = carray(pointer(job[9]), (job[14], 6), np.int64)
    edges = carray(pointer(job[10]), (job[15], job[16], 2), np.int64)
    return job, images, order, starts, plan, edges


@inline
def _arguments(job):
    return job[17], job[18], job[19], job[20], job[21], job[22], job[23], job[24], job[25]


@inline
def _claim(address):
    """Claim the next units for this thread and return the first."""
    job = carray(pointer(address), 4, np.int64)
    return fetch_add(address, job[3])


@inline
def _scratch(address):
    job = carray(pointer(address), 6, np.int64)
    return job[4] + fetch_add(address + 8, 1) * job[5]
