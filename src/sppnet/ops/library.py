"""The operator registered with torch: schema, fake tensors, derivatives, vmap, and the choice of the kernels.

``sppnet::pool`` serves whole maps and regions: a whole map is pooled like a window that covers it.
Graphs contain the operator; eager calls run the kernels directly.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from sppnet.ops import reference
from sppnet.ops.levels import Reduce, Rule, count_bins
from sppnet.ops.reference import Grids

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
    """Pool windows of maps to (K, C * bins). The arguments of :func:`sppnet.ops.reference.forward` are not checked.

    Raises:
        NotImplementedError: `x` has a tangent (torch.func.jvp); only reverse-mode derivatives are supported.
    """
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError("x: forward-mode derivatives are not supported; use reverse mode, as in .backward()")
    needs_grad = x.requires_grad and torch.is_grad_enabled()
    dispatched = _needs_dispatch(x, windows)
    values: Tensor
    if not needs_grad and not dispatched:
        values = _kernels(x).forward(x, windows, grids, rule, reduce, False)[0]
    else:
        flat_grids = [side for grid in grids for side in grid]
        function = torch.ops.sppnet.pool.default if dispatched else _Pool.apply
        values = function(x, windows, flat_grids, rule, reduce, needs_grad and reduce == "max")[0]
    return values


def _needs_dispatch(x: Tensor, *others: Tensor | None) -> bool:
    """Return whether a call must go through torch's dispatcher: the kernels need eager mode and plain tensors."""
    return (
        torch.compiler.is_compiling()
        or x.device.type not in ("cpu", "cuda")
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled(x.device.type)
        or not all(_is_plain(tensor) for tensor in (x, *others) if tensor is not None)
        or is_in_torch_dispatch_mode()
    )


def _is_plain(x: Tensor) -> bool:
    """Return whether the kernels can read a tensor: not a subclass, batched, lazily negated or a zero tensor."""
    if type(x) not in (Tensor, torch.nn.Parameter):
        return False
    if x.device.type == "cpu":
        return torch._C._dispatch_keys(x).raw_repr() in _PLAIN_KEYS
    return not (torch._C._functorch.is_functorch_wrapped_tensor(x) or x.is_neg() or x._is_zerotensor())


with torch.inference_mode():
    _PLAIN_KEYS = {torch._C._dispatch_keys(torch.empty(0, device="cpu")).raw_repr()}
_PLAIN_KEYS.add(torch._C._dispatch_keys(torch.empty(0, device="cpu")).raw_repr())


def _forward(x: Tensor, windows: Tensor | None, grids: list[int], *rest: Any) -> tuple[Tensor, Tensor]:
    kernels = _kernels(x)
    return kernels.forward(x, windows, _pairs(grids), *rest)  # type: ignore[no-any-return]


def _backward(
    grad: Tensor,
    cells: Tensor,
    windows: Tensor | None,
    shape: list[int | torch.SymInt],
    channels_last: bool,
    grids: list[int],
    *rest: Any,
) -> Tensor:
    kernels = _kernels(grad)
    return kernels.backward(grad, cells, windows, shape, channels_last, _pairs(grids), *rest)  # type: ignore[no-any-return]


def _kernels(x: Tensor) -> Any:
    """Return the module that pools this tensor; its compiler is imported on first use."""
    if x.device.type == "cpu":
        from sppnet.ops.cpu import dispatch as cpu

        return cpu if cpu.serves(x) else reference
    if x.device.type == "cuda":
        from sppnet.ops.gpu import dispatch as gpu

        return gpu if gpu.serves(x) else reference
    return reference


def _pairs(grids: list[int]) -> list[tuple[int, int]]:
    return list(zip(grids[::2], grids[1::2], strict=True))


_LIBRARY.impl("pool", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("pool_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("sppnet::pool", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(
    x: Tensor, windows: Tensor | None, grids: list[int], _rule: str, reduce: str, save: bool
) -> tuple[Tensor, Tensor]:
    count = x.shape[0] if windows is None else windows.shape[0]
    values = x.new_empty((count, x.shape[1] * count_bins(_pairs(grids))))
    save = save and reduce == "max"
    return values, torch.empty_like(values, dtype=torch.int32) if save else x.new_empty(0, dtype=torch.int32)


@torch.library.register_fake("sppnet::pool_backward", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(
    grad: Tensor,
    _cells: Tensor,
    _windows: Tensor | None,
    shape: list[int | torch.SymInt],
    channels_last: bool,
    *_options: Any,
) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, windows, ctx.grids, ctx.rule, ctx.reduce, save = inputs
    cells = output[1]
    ctx.mark_non_differentiable(cells)
    ctx.set_materialize_grads(False)  # otherwise torch allocates a zero gradient of the cells
    # A torch.func transform does not say in advance that a derivative will follow.
    ctx.recompute = ctx.reduce == "max" and not save
    ctx.save_for_backward(x if ctx.recompute else cells, windows)
    ctx.shape = list(x.shape)
    ctx.channels_last = reference.is_channels_last(x)


def _derivative(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    saved, windows = ctx.saved_tensors
    options = (ctx.grids, ctx.rule, ctx.reduce)
    cells = torch.ops.sppnet.pool.default(saved.detach(), windows, *options, True)[1] if ctx.recompute else saved
    arguments = (grad, cells, windows, ctx.shape, ctx.channels_last, *options)
    needs_grad = grad.requires_grad and torch.is_grad_enabled()
    dispatched = needs_grad or _needs_dispatch(grad, cells, windows)
    gradient = (torch.ops.sppnet.pool_backward.default if dispatched else _backward)(*arguments)
    return gradient, None, None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, cells, windows, _, _, ctx.grids, ctx.rule, ctx.reduce = inputs
    ctx.save_for_backward(cells, windows)


def _second_derivative(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    cells, windows = ctx.saved_tensors
    if ctx.reduce == "max":
        gradient = reference.gather_cells(grad, cells, windows, _pairs(ctx.grids))
    else:
        gradient = torch.ops.sppnet.pool.default(grad, windows, ctx.grids, ctx.rule, "avg", False)[0]
    return gradient, None, None, None, None, None, None, None


class _Pool(torch.autograd.Function):
    """The operator and its derivative, called without torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        output = _forward(*arguments)
        _setup(ctx, arguments, output)
        return output

    backward = staticmethod(_derivative)


torch.library.register_autograd("sppnet::pool", _derivative, setup_context=_setup, lib=_LIBRARY)
torch.library.register_autograd(
    "sppnet::pool_backward", _second_derivative, setup_context=_setup_backward, lib=_LIBRARY
)


def _batched(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, windows: Tensor | None, *options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int | None, int | None]]:
    """Run a batch of calls as one call on their concatenated maps and windows."""
    maps = _rows(x, in_dims[0], info.batch_size)
    windows = _join_windows(windows, in_dims[1], info.batch_size, maps.shape[0] // info.batch_size)
    values, cells = torch.ops.sppnet.pool.default(maps, windows, *options)
    values = values.unflatten(0, (info.batch_size, -1))
    if cells.numel() == 0:
        return (values, cells), (0, None)
    return (values, cells.unflatten(0, (info.batch_size, -1))), (0, 0)


def _batched_backward(
    info: Any,
    in_dims: tuple[Any, ...],
    grad: Tensor,
    cells: Tensor,
    windows: Tensor | None,
    shape: list[int | torch.SymInt],
    *options: Any,
) -> tuple[Tensor, int]:
    windows = _join_windows(windows, in_dims[2], info.batch_size, shape[0])
    cells = _rows(cells, in_dims[1], info.batch_size) if cells.numel() else cells
    full_shape = [info.batch_size * shape[0], *shape[1:]]
    grad = _rows(grad, in_dims[0], info.batch_size)
    gradient = torch.ops.sppnet.pool_backward.default(grad, cells, windows, full_shape, *options)
    return gradient.unflatten(0, (info.batch_size, -1)), 0


def _rows(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    """Flatten to (batch * n, ...): move the batch dimension to the front, or repeat a tensor without one."""
    tensor = tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


def _join_windows(windows: Tensor | None, dim: int | None, batch: int, images: int | torch.SymInt) -> Tensor | None:
    """Concatenate the windows of a batch of calls, with image indices into the concatenated maps."""
    if windows is None:
        return None
    rows = _rows(windows, dim, batch).clone()
    first_images = torch.arange(batch, device=rows.device) * int(images)
    rows[:, 0] += first_images.repeat_interleave(len(rows) // batch)
    return rows


torch.library.register_vmap("sppnet::pool", _batched, lib=_LIBRARY)
torch.library.register_vmap("sppnet::pool_backward", _batched_backward, lib=_LIBRARY)
