"""The pyramid operator in standard ONNX operators, exact at every map size.

Importing this module requires the extra `export`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18

Edges = tuple[Sequence[Any], Sequence[Any]]

op: Any = opset18  # its annotations do not allow Python lists, which become constants


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the `custom_translation_table` with which :func:`torch.onnx.export` writes any module with a pyramid.

    Maxima equal torch's bit for bit; means differ by the rounding of a sum in another order. The result for NaN
    depends on the runtime: the ONNX standard does not define it.
    """
    return {torch.ops.sppnet.pool.default: pool}


def pool(
    x: Any,
    windows: Any,
    grids: Sequence[int],
    rule: str,
    reduce: str,
    save: bool = False,  # noqa: ARG001
) -> tuple[Any, Any]:
    """Translate the operator ``sppnet::pool``, without the cells of the maxima.

    Raises:
        ValueError: a rule other than ``adaptive``.
    """
    check_rule(rule)
    pairs = list(zip(grids[::2], grids[1::2], strict=True))
    values = _whole(x, pairs, reduce) if windows is None else _windows(x, windows, pairs, reduce)
    no_cells = op.Cast(op.Shape(x, start=0, end=0), to=ir.DataType.INT32)
    return values, no_cells


def check_rule(rule: str) -> None:
    """Check that a rule can be written to a file that accepts every map size.

    Raises:
        ValueError: a rule other than ``adaptive``.
    """
    if rule != "adaptive":
        raise ValueError(
            f"rule: expected 'adaptive', got {rule!r}, which rejects some image sizes; train with --rule adaptive"
        )


def _whole(x: Any, grids: Sequence[tuple[int, int]], reduce: str) -> Any:
    zero = _integers(op, 0)
    edges: dict[tuple[int, int], Edges] = {}
    for grid in _roots(grids, reduce):
        sides = []
        for axis, bins in zip((2, 3), grid, strict=True):
            cuts = _cut(zero, op.Shape(x, start=axis, end=axis + 1), bins)
            begins, ends = (op.Split(cut, num_outputs=bins, axis=0) if bins > 1 else [cut] for cut in cuts)
            sides.append(list(zip(begins, ends, strict=True)))
        edges[grid] = (sides[0], sides[1])
    return _pyramid(op, x, edges, grids, reduce)


def _windows(x: Any, windows: Any, grids: Sequence[tuple[int, int]], reduce: str) -> Any:
    """Pool windows in a Scan, which holds one crop in memory; the edges of all bins are computed before it.

    onnxruntime rejects a Scan of length 0, so a dummy window is appended and its result removed. A bin outside the
    map first gets the nearest cell of the crop, which is in every non-empty coarser bin too. At the end it is set to 0.
    """
    windows = op.Concat(windows, op.Reshape(_integers(op, 0, 0, 0, 1, 1), [1, 5]), axis=0)
    image, left, top, right, bottom = (op.Slice(windows, [i], [i + 1], [1]) for i in range(5))
    bounds, crops = {}, []
    for axis, begin, end in ((2, top, bottom), (3, left, right)):
        side = op.Shape(x, start=axis, end=axis + 1)
        first = _clamp(begin, _integers(op, 0), op.Sub(side, [1]))
        crops.append((first, _clamp(end, op.Add(first, [1]), side)))
        bounds[axis] = begin, end, side
    fields = [image, crops[0][0], crops[1][0], op.Add(image, [1]), crops[0][1], crops[1][1]]
    roots = _roots(grids, reduce)
    for grid in roots:
        for axis, bins, (first, last) in zip((2, 3), grid, crops, strict=True):
            begins, ends = _cut(bounds[axis][0], bounds[axis][1], bins)
            begins = _clamp(op.Sub(begins, first), _integers(op, 0), op.Sub(op.Sub(last, first), [1]))
            ends = _clamp(op.Sub(ends, first), op.Add(begins, [1]), op.Sub(last, first))
            fields += [begins, ends]
    body = _body(x, roots, grids, reduce)
    stacked = op.Scan(op.Concat(*fields, axis=1), body=body, num_scan_inputs=1)
    count = op.Shape(windows, start=0, end=1)
    return op.Slice(_zero_empty_bins(x, stacked, count, bounds, grids), [0], [-1], [0])


def _body(x: Any, roots: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int]], reduce: str) -> ir.Graph:
    """Build the body of the Scan: one row, with the edges of a crop and its bins, gives a pyramid (1, C * bins)."""
    tape = _Tape()
    lengths = [3, 3] + [1] * (2 * sum(map(sum, roots)))
    row = ir.Value(name="window", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape((sum(lengths),)))
    begin, end, *rest = tape.op_multi_out("Split", [row, _integers(tape, *lengths)], num_outputs=len(lengths))
    crop = tape.Slice(x, begin, end, _integers(tape, 0, 2, 3))
    edges: dict[tuple[int, int], Edges] = {}
    for rows, columns in roots:
        sides = []
        for bins in (rows, columns):
            sides.append(list(zip(rest[:bins], rest[bins : 2 * bins], strict=True)))
            rest = rest[2 * bins :]
        edges[rows, columns] = (sides[0], sides[1])
    values = tape.Identity(_pyramid(tape, crop, edges, grids, reduce))
    values.type = ir.TensorType(x.dtype)
    for number, node in enumerate(tape.nodes):  # names inside a Scan must differ from those around it
        for index, output in enumerate(node.outputs):
            output.name = f"window_{node.op_type}_{number}_{index}"
    return ir.Graph([row], [values], nodes=tape.nodes, name="window_pyramid")


def _zero_empty_bins(
    x: Any, stacked: Any, count: Any, bounds: dict[int, tuple[Any, Any, Any]], grids: Sequence[tuple[int, int]]
) -> Any:
    """Return (K, C * bins) from the Scan's (K, 1, C * bins), with 0 in each bin that contains no cell of the map."""
    channels = op.Shape(x, start=1, end=2)
    parts, start = [], op.Constant(value_ints=[0])
    for rows, columns in grids:
        occupied = []
        for axis, bins in ((2, rows), (3, columns)):
            begin, end, side = bounds[axis]
            begins, ends = (_clamp(cut, _integers(op, 0), side) for cut in _cut(begin, end, bins))
            occupied.append(op.Less(begins, ends))
        mask = op.And(op.Unsqueeze(occupied[0], [2]), op.Unsqueeze(occupied[1], [1]))
        stop = op.Add(start, op.Mul(channels, [rows * columns]))
        shape = op.Concat(count, channels, _integers(op, rows, columns), axis=0)
        level = op.Reshape(op.Slice(stacked, start, stop, [2]), shape, allowzero=1)
        parts.append(op.Flatten(op.Where(op.Unsqueeze(mask, [1]), level, op.CastLike(0.0, level)), axis=1))
        start = stop
    return op.Concat(*parts, axis=1)


def _pyramid(
    op: Any, x: Any, edges: dict[tuple[int, int], Edges], grids: Sequence[tuple[int, int]], reduce: str
) -> Any:
    """Pool maps (N, C, H, W) to (N, C * bins); grids without `edges` are reduced from finer grids."""
    reduction = op.ReduceMax if reduce == "max" else op.ReduceMean
    pooled = {}
    for grid, sides in edges.items():
        value = x
        for axis, bins in zip((2, 3), sides, strict=True):
            axes = _integers(op, axis)
            parts = [reduction(op.Slice(value, begin, end, axes), axes, keepdims=1) for begin, end in bins]
            value = op.Concat(*parts, axis=axis) if len(parts) > 1 else parts[0]
        pooled[grid] = value
    for rows, columns in grids:
        if (rows, columns) not in pooled:
            root = next(grid for grid in edges if _nests((rows, columns), grid))
            shape = _integers(op, 0, 0, rows, root[0] // rows, columns, root[1] // columns)
            pooled[rows, columns] = reduction(op.Reshape(pooled[root], shape), _integers(op, 3, 5), keepdims=0)
    # Not Flatten, which becomes a Reshape to (0, -1): onnxruntime rejects it for a batch of 0.
    channels = op.Shape(x, start=1, end=2)
    vectors = {}
    for (rows, columns), value in pooled.items():
        length = op.Mul(channels, _integers(op, rows * columns))
        vectors[rows, columns] = op.Reshape(value, op.Concat(_integers(op, 0), length, axis=0))
    return op.Concat(*[vectors[grid] for grid in grids], axis=1)


def _roots(grids: Sequence[tuple[int, int]], reduce: str) -> list[tuple[int, int]]:
    """Return the grids that must be cut from the map; the maxima of the others follow from a finer grid.

    With m bins along a side of a cells, bin j begins at floor(j a / m) = floor(j n a / (n m)), where bin j n of n m
    bins begins. Ends match in the same way, so a bin is the union of n finer ones.
    """
    distinct = sorted(set(grids), reverse=True)
    if reduce != "max":
        return distinct
    return [grid for grid in distinct if not any(_nests(grid, finer) for finer in distinct if finer != grid)]


def _nests(grid: tuple[int, int], finer: tuple[int, int]) -> bool:
    return finer[0] % grid[0] == 0 and finer[1] % grid[1] == 0


def _cut(begin: Any, end: Any, bins: int) -> tuple[Any, Any]:
    """Return the begins and ends of the bins of a side, as in :func:`sppnet.ops.bins.bin_edges`.

    ONNX truncates quotients, which rounds down here: no window has a negative side.
    """
    size = op.Sub(end, begin)
    begins = op.Div(op.Mul(size, _integers(op, *range(bins))), [bins])
    ends = op.Div(op.Add(op.Mul(size, _integers(op, *range(1, bins + 1))), [bins - 1]), [bins])
    return op.Add(begin, begins), op.Add(begin, ends)


def _clamp(x: Any, low: Any, high: Any) -> Any:
    return op.Min(op.Max(x, low), high)


def _integers(op: Any, *values: int) -> Any:
    return op.Constant(value_ints=list(values))


class _Tape(ir.tape.Tape):
    """Tape with a method per operator, as in `onnxscript`, for the body of a Scan."""

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        return lambda *inputs, **attributes: self.op(op_type, inputs, attributes)
