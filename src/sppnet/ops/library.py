"""The operator as torch sees it: schema, shapes without data, derivatives, batching.

``sppnet::pool`` serves whole maps and regions alike: a pyramid of a map is that of the window that is the whole map.
"""

from typing import Any

import torch
from torch import Tensor

from sppnet.bins import Rule
from sppnet.ops import plain
from sppnet.ops.plain import Grids, Reduce

_LIBRARY = torch.library.Library("sppnet", "DEF")
_LIBRARY.define(
    "pool(Tensor x, Tensor? windows, int[] grids, str rule, str reduce, bool save) -> (Tensor values, Tensor cells)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "pool_backward(Tensor grad, Tensor cells, Tensor? windows, SymInt[] shape, bool channels_last, int[] grids,"
    " str rule, str reduce) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def pool(x: Tensor, windows: Tensor | None, grids: Grids, rule: Rule, reduce: Reduce) -> Tensor:
    """Vectors (K, C * bins) of windows of maps; arguments as in :func:`sppnet.ops.plain.forward`, not checked."""
    save = reduce == "max" and x.requires_grad and torch.is_grad_enabled()
    values: Tensor = torch.ops.sppnet.pool.default(x, windows, _flat(grids), rule, reduce, save)[0]
    return values


def _flat(grids: Grids) -> list[int]:
    return [side for grid in grids for side in grid]


def _pairs(grids: list[int]) -> list[tuple[int, int]]:
    return list(zip(grids[::2], grids[1::2], strict=True))


def _plain(x: Tensor, windows: Tensor | None, grids: list[int], *rest: Any) -> tuple[Tensor, Tensor]:
    return plain.forward(x, windows, _pairs(grids), *rest)


def _plain_backward(
    grad: Tensor,
    cells: Tensor,
    windows: Tensor | None,
    shape: list[int],
    channels_last: bool,
    grids: list[int],
    *rest: Any,
) -> Tensor:
    total = plain.backward(grad, cells, windows, shape, _pairs(grids), *rest)
    return total.contiguous(memory_format=_memory_format(channels_last))


_LIBRARY.impl("pool", _plain, "CompositeExplicitAutograd")
_LIBRARY.impl("pool_backward", _plain_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("sppnet::pool", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(
    x: Tensor, windows: Tensor | None, grids: list[int], _rule: str, _reduce: str, save: bool
) -> tuple[Tensor, Tensor]:
    count = x.shape[0] if windows is None else windows.shape[0]
    values = x.new_empty((count, x.shape[1] * sum(rows * columns for rows, columns in _pairs(grids))))
    return values, torch.empty_like(values, dtype=torch.int32) if save else x.new_empty(0, dtype=torch.int32)


@torch.library.register_fake("sppnet::pool_backward", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(
    grad: Tensor,
    _cells: Tensor,
    _windows: Tensor | None,
    shape: list[int],
    channels_last: bool,
    *_options: Any,
) -> Tensor:
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=_memory_format(channels_last))


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, windows, ctx.grids, ctx.rule, ctx.reduce, save = inputs
    cells = output[1]
    ctx.mark_non_differentiable(cells)
    # Inside a transform of torch.func nobody can tell beforehand that a derivative will be asked for.
    ctx.recompute = ctx.reduce == "max" and not save
    ctx.save_for_backward(x if ctx.recompute else cells, windows)
    ctx.shape = x.shape
    ctx.channels_last = _is_channels_last(x)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _derivative(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved, windows = ctx.saved_tensors
    options = (ctx.grids, ctx.rule, ctx.reduce)
    cells = torch.ops.sppnet.pool.default(saved.detach(), windows, *options, True)[1] if ctx.recompute else saved
    found = torch.ops.sppnet.pool_backward.default(grad, cells, windows, ctx.shape, ctx.channels_last, *options)
    return found, None, None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, cells, windows, _, _, ctx.grids, ctx.rule, ctx.reduce = inputs
    ctx.save_for_backward(cells, windows)


def _second_derivative(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    cells, windows = ctx.saved_tensors
    if ctx.reduce == "max":
        found = plain.take(grad, cells, windows, _pairs(ctx.grids))
    else:
        found = torch.ops.sppnet.pool.default(grad, windows, ctx.grids, ctx.rule, "avg", False)[0]
    return found, None, None, None, None, None, None, None


torch.library.register_autograd("sppnet::pool", _derivative, setup_context=_setup, lib=_LIBRARY)
torch.library.register_autograd(
    "sppnet::pool_backward", _second_derivative, setup_context=_setup_backward, lib=_LIBRARY
)


@torch.library.register_vmap("sppnet::pool", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, windows: Tensor | None, *options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int | None, int | None]]:
    """A batch of calls is one call: maps and windows of all of them in a row."""
    b = info.batch_size
    maps = _rows(x, in_dims[0], b)
    windows = _shifted(windows, in_dims[1], b, maps.shape[0] // b)
    values, cells = torch.ops.sppnet.pool.default(maps, windows, *options)
    saved = cells.numel() > 0
    return (values.unflatten(0, (b, -1)), cells.unflatten(0, (b, -1)) if saved else cells), (0, 0 if saved else None)


@torch.library.register_vmap("sppnet::pool_backward", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(
    info: Any,
    in_dims: tuple[Any, ...],
    grad: Tensor,
    cells: Tensor,
    windows: Tensor | None,
    shape: list[int],
    *options: Any,
) -> tuple[Tensor, int]:
    b = info.batch_size
    windows = _shifted(windows, in_dims[2], b, shape[0])
    cells = _rows(cells, in_dims[1], b) if cells.numel() else cells
    every = [b * shape[0], *shape[1:]]
    found = torch.ops.sppnet.pool_backward.default(_rows(grad, in_dims[0], b), cells, windows, every, *options)
    return found.unflatten(0, (b, -1)), 0


def _rows(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    """(batch * n, ...): what is batched brought to the front, what is not repeated."""
    tensor = tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


def _shifted(windows: Tensor | None, dim: int | None, batch: int, images: int) -> Tensor | None:
    if windows is None:
        return None
    rows = _rows(windows, dim, batch).clone()
    rows[:, 0] += torch.arange(batch, device=rows.device).repeat_interleave(len(rows) // batch) * images
    return rows
