"""The pyramid operator in standard ONNX operators, exact at every map size.

Import this module only where the extra `export` is installed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18

Edges = tuple[Sequence[Any], Sequence[Any]]

op: Any = opset18  # its annotations know of no Python lists, which become constants


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `custom_translation_table` of :func:`torch.onnx.export`, with which any module with a pyramid can be written.

    The maximum of a whole map or of a window is the one that torch finds, bit for bit; a mean differs by the rounding
    of a sum in another order. What becomes of NaN is left to the runtime: the standard does not say.
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
    """The operator ``sppnet::pool``; its places of the maxima are left out.

    Raises:
        ValueError: a rule other than ``adaptive``.
    """
    check_rule(rule)
    pairs = list(zip(grids[::2], grids[1::2], strict=True))
    values = _whole(x, pairs, reduce) if windows is None else _windows(x, windows, pairs, reduce)
    no_cells = op.Cast(op.Shape(x, start=0, end=0), to=ir.DataType.INT32)
    return values, no_cells


def check_rule(rule: str) -> None:
    """Refuse a rule whose bins a file cannot compute.

    Raises:
        ValueError: a rule other than ``adaptive``.
    """
    if rule != "adaptive":
        raise ValueError(
            f"rule: a file for every image size needs 'adaptive'; got {rule!r}, which refuses some sizes;"
            " train with --rule adaptive"
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
    """A Scan over the windows: memory holds one crop. Where bins begin and end is computed for all of them before.

    onnxruntime refuses a Scan over nothing, so one more window is added and taken away again. A bin that lies outside
    the map takes the nearest cell of the crop, which every coarser bin that is not empty holds too, and is put to 0 in
    the end.
    """
    windows = op.Concat(windows, op.Reshape(_integers(op, 0, 0, 0, 1, 1), [1, 5]), axis=0)
    image, left, top, right, bottom = (op.Slice(windows, [i], [i + 1], [1]) for i in range(5))
    bounds, crops = {}, []
    for axis, begin, end in ((2, top, bottom), (3, left, right)):
        side = op.Shape(x, start=axis, end=axis + 1)
        first = _clamp(begin, _integers(op, 0), op.Sub(side, [1]))
        crops.append((first, _clamp(end, op.Add(first, [1]), side)))
        bounds[axis] = begin, end, side
    numbers = [image, crops[0][0], crops[1][0], op.Add(image, [1]), crops[0][1], crops[1][1]]
    roots = _roots(grids, reduce)
    for grid in roots:
        for axis, bins, (first, last) in zip((2, 3), grid, crops, strict=True):
            begins, ends = _cut(bounds[axis][0], bounds[axis][1], bins)
            begins = _clamp(op.Sub(begins, first), _integers(op, 0), op.Sub(op.Sub(last, first), [1]))
            ends = _clamp(op.Sub(ends, first), op.Add(begins, [1]), op.Sub(last, first))
            numbers += [begins, ends]
    body = _body(x, roots, grids, reduce)
    stacked = op.Scan(op.Concat(*numbers, axis=1), body=body, num_scan_inputs=1)
    count = op.Shape(windows, start=0, end=1)
    return op.Slice(_without_empty(x, stacked, count, bounds, grids), [0], [-1], [0])


def _body(x: Any, roots: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int]], reduce: str) -> ir.Graph:
    """The pyramid (1, C * bins) of one window; `table` has the begins and ends of its crop and of its bins."""
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
    for number, node in enumerate(tape.nodes):  # names of a Scan's body must differ from those around it
        for index, output in enumerate(node.outputs):
            output.name = f"window_{node.op_type}_{number}_{index}"
    return ir.Graph([row], [values], nodes=tape.nodes, name="window_pyramid")


def _without_empty(
    x: Any, stacked: Any, count: Any, bounds: dict[int, tuple[Any, Any, Any]], grids: Sequence[tuple[int, int]]
) -> Any:
    """(K, C * bins) from the Scan's (K, 1, C * bins), 0 in each bin that holds no cell of the map."""
    channels = op.Shape(x, start=1, end=2)
    parts, start = [], op.Constant(value_ints=[0])
    for rows, columns in grids:
        full = []
        for axis, bins in ((2, rows), (3, columns)):
            begin, end, side = bounds[axis]
            begins, ends = (_clamp(cut, _integers(op, 0), side) for cut in _cut(begin, end, bins))
            full.append(op.Less(begins, ends))
        some = op.And(op.Unsqueeze(full[0], [2]), op.Unsqueeze(full[1], [1]))
        stop = op.Add(start, op.Mul(channels, [rows * columns]))
        shape = op.Concat(count, channels, _integers(op, rows, columns), axis=0)
        level = op.Reshape(op.Slice(stacked, start, stop, [2]), shape, allowzero=1)
        parts.append(op.Flatten(op.Where(op.Unsqueeze(some, [1]), level, op.CastLike(0.0, level)), axis=1))
        start = stop
    return op.Concat(*parts, axis=1)


def _pyramid(
    op: Any, x: Any, edges: dict[tuple[int, int], Edges], grids: Sequence[tuple[int, int]], reduce: str
) -> Any:
    """(N, C * bins) of maps (N, C, H, W); grids that are not in `edges` are found from those that are."""
    shrink = op.ReduceMax if reduce == "max" else op.ReduceMean
    found = {}
    for grid, sides in edges.items():
        value = x
        for axis, bins in zip((2, 3), sides, strict=True):
            axes = _integers(op, axis)
            parts = [shrink(op.Slice(value, begin, end, axes), axes, keepdims=1) for begin, end in bins]
            value = op.Concat(*parts, axis=axis) if len(parts) > 1 else parts[0]
        found[grid] = value
    for rows, columns in grids:
        if (rows, columns) not in found:
            root = next(grid for grid in edges if _nests((rows, columns), grid))
            shape = _integers(op, 0, 0, rows, root[0] // rows, columns, root[1] // columns)
            found[rows, columns] = shrink(op.Reshape(found[root], shape), _integers(op, 3, 5), keepdims=0)
    vectors = {grid: op.Flatten(value, axis=1) for grid, value in found.items()}
    return op.Concat(*[vectors[grid] for grid in grids], axis=1)


def _roots(grids: Sequence[tuple[int, int]], reduce: str) -> list[tuple[int, int]]:
    """The grids that must be cut from the map: the maximum of each other one is found from a finer one's.

    A bin that is n finer ones wide begins where the first of them does and ends where the last does, for rounding
    down and up is monotonic: bin j of a/n spans from floor(j n a / n m) to ceil((j + 1) n a / n m).
    """
    distinct = sorted(set(grids), reverse=True)
    if reduce != "max":
        return distinct
    return [grid for grid in distinct if not any(_nests(grid, finer) for finer in distinct if finer != grid)]


def _nests(grid: tuple[int, int], finer: tuple[int, int]) -> bool:
    return finer[0] % grid[0] == 0 and finer[1] % grid[1] == 0


def _cut(begin: Any, end: Any, bins: int) -> tuple[Any, Any]:
    """Begins and ends of the bins of a side, as in :func:`sppnet.ops.bins.bin_edges`.

    ONNX cuts quotients off, which rounds down here: no window has a negative side.
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
    """Operators by their names, as `onnxscript` has them, for the body of a Scan."""

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        return lambda *inputs, **attributes: self.op(op_type, inputs, attributes)
