"""Padding rules by torch function, applied by :class:`sppnet.backbones.padded.mode.PaddedBatch`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.backbones.padded.ledger import PaddingState, PaddingTracker
from sppnet.backbones.padded.norm import batch_norm_arguments, valid_batch_norm
from sppnet.backbones.padded.windows import avg_pool2d, conv2d, max_pool2d, pad

# Elementwise functions of one map, some of them with constants.
_UNARY = (
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "silu", "mish", "gelu", "hardswish", "hardsigmoid",
    "hardtanh", "clamp", "tanh", "sigmoid", "logsigmoid", "softplus", "softsign", "abs", "neg", "square", "dropout",
)  # fmt: skip
# Elementwise functions of several maps, or of a map and one value per image or channel.
_BINARY = ("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "div", "true_divide", "addcmul")
# Functions that keep values and layout.
_KEEP = ("contiguous", "to", "float", "half", "bfloat16", "type", "clone", "detach", "type_as", "requires_grad")
# Functions that only read the metadata of a tensor.
READS = (
    "get", "dim", "size", "stride", "is_contiguous", "is_floating_point", "get_device", "len", "assert", "new_empty",
)  # fmt: skip


def plain_name(func: Any) -> str:
    """Return the name of a torch function without the underscores of its in-place and operator variants."""
    return str(getattr(func, "__name__", func)).strip("_")


def _elementwise(ledger: PaddingTracker, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Apply an elementwise function; untracked operands may vary by image and channel, but not by position."""
    name = plain_name(func)
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    maps = [tensor for tensor in tensors if ledger.follows(tensor)]
    first, *others = (ledger.known(tensor) for tensor in maps)
    same_layout = all((valid.areas, valid.dims) == (first.areas, first.dims) for valid in others)
    if not same_layout or any(x.shape[dim] != maps[0].shape[dim] for x in maps for dim in first.dims):
        raise ledger.refusal(f"{name} combines maps of different images or layouts")
    for other in tensors:
        if not ledger.follows(other) and not _is_position_independent(other, first):
            raise ledger.refusal(f"{name} has an operand of shape {tuple(other.shape)} that may vary by position")
    if "div" in name and not (len(maps) == 1 and args and args[0] is maps[0]):
        raise ledger.refusal(f"{name} divides by a map, which may be 0 in the padding")
    clean = first.clean and all(valid.clean for valid in others)
    if clean and name not in ("mul", "rmul", "imul", "div", "true_divide", "dropout"):
        # Evaluate the function at 0; with untracked tensor operands the padding counts as not clean.
        clean = len(maps) == len(tensors) and not _value_at_zero(func, args, kwargs)
    out: Tensor = func(*args, **kwargs)
    if any(out is tensor for tensor in tensors):
        ledger.wrote(out)
    return ledger.mark(out, replace(first, clean=clean))


def _is_position_independent(x: Tensor, valid: PaddingState) -> bool:
    return x.ndim <= 4 and all(x.shape[dim - 4] == 1 for dim in valid.dims if 4 - dim <= x.ndim)


def _value_at_zero(func: Any, args: Any, kwargs: dict[str, Any]) -> float:
    values = [torch.zeros(()) if isinstance(value, Tensor) else value for value in (*args, *kwargs.values())]
    return float(func(*values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True))))


def _pow(ledger: PaddingTracker, func: Any, input: Any, exponent: Any) -> Tensor:
    if not (ledger.follows(input) and isinstance(exponent, int | float)) or func.__name__ == "pow_":
        raise ledger.refusal("pow is in-place, or its exponent is not a number")
    # Derivatives of other powers may be infinite in the padding, which turns a gradient of 0 into NaN.
    smooth = exponent >= 1 and float(exponent).is_integer()
    return _elementwise(ledger, func, input if smooth else ledger.seal(input), exponent)


def _local_response_norm(ledger: PaddingTracker, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    valid = ledger.known(input)
    if valid.dims != (2, 3):
        raise ledger.refusal("local_response_norm gets a channels-last map")
    return ledger.mark(func(input, *args, **kwargs), replace(valid, clean=False))


def _keep(ledger: PaddingTracker, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    out = func(x, *args, **kwargs)
    # `to` and `type_as` may use a map only for its dtype, and `type` may return a string.
    return ledger.mark(out, ledger.known(x)) if ledger.follows(x) and isinstance(out, Tensor) else out


def _read(ledger: PaddingTracker, func: Any, *args: Any, **kwargs: Any) -> Any:
    out = func(*args, **kwargs)
    if plain_name(func) == "get" and isinstance(out, Tensor):
        raise ledger.refusal("a map is read through an attribute such as .data")
    return out


def _batch_norm(ledger: PaddingTracker, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    valid = ledger.known(input)
    if func is not F.batch_norm or valid.dims != (2, 3):
        raise ledger.refusal("batch_norm is not called as F.batch_norm, or gets a channels-last map")
    values = batch_norm_arguments(input, *args, **kwargs)
    if not values.pop("training"):
        return ledger.mark(func(input, *args, **kwargs), replace(valid, clean=False))
    outside = ledger.outside(input, valid.areas)
    return ledger.mark(valid_batch_norm(**values, outside=outside), replace(valid, clean=True))


def _mean(
    ledger: PaddingTracker, _func: Any, input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """Average over the valid cells of each image; the result is not tracked further."""
    valid = ledger.known(input)
    if not _over_positions(input, valid, dim):
        raise ledger.refusal(f"mean reduces dimensions {dim}")
    # In 16 bits, sums overflow and counts are not exact.
    dtype = dtype or input.dtype
    total = ledger.clear(input).sum(valid.dims, keepdim=keepdim, dtype=torch.promote_types(dtype, torch.float32))
    counts = total.new_tensor([height * width for height, width in valid.areas])
    return (total / counts.view(-1, *[1] * (total.ndim - 1))).to(dtype)


def _adaptive_avg_pool2d(ledger: PaddingTracker, func: Any, input: Tensor, output_size: Any) -> Tensor:
    if ledger.known(input).dims != (2, 3) or output_size not in (1, (1, 1), [1, 1]):
        raise ledger.refusal(f"adaptive_avg_pool2d has output size {output_size}")
    return _mean(ledger, func, input, (2, 3), keepdim=True)


def _norm(
    ledger: PaddingTracker,
    func: Any,
    input: Tensor,
    p: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> Tensor:
    valid = ledger.known(input)
    if p not in (1, 2, "fro") or not _over_positions(input, valid, dim):
        raise ledger.refusal(f"norm of order {p} reduces dimensions {dim}")
    out: Tensor = func(ledger.clear(input), p=p, dim=dim, keepdim=keepdim, dtype=dtype)
    return out


def _layer_norm(
    ledger: PaddingTracker, func: Any, input: Tensor, normalized_shape: Sequence[int], *args: Any, **kw: Any
) -> Tensor:
    valid = ledger.known(input)
    if max(valid.dims) >= input.ndim - len(normalized_shape):
        raise ledger.refusal("layer_norm reduces rows or columns")
    return ledger.mark(func(input, normalized_shape, *args, **kw), replace(valid, clean=False))


def _group_norm(
    ledger: PaddingTracker,
    _func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    valid = ledger.known(input)
    if valid.dims != (2, 3):
        raise ledger.refusal("group_norm gets a channels-last map")
    x = ledger.clear(input).to(torch.promote_types(input.dtype, torch.float32))
    groups = x.view(len(x), num_groups, -1, *x.shape[2:])
    counts = x.new_tensor([height * width for height, width in valid.areas]).view(-1, 1, 1, 1, 1) * groups.shape[2]
    mean = groups.sum((2, 3, 4), keepdim=True) / counts
    centered = ledger.mark((groups - mean).view_as(x), replace(valid, clean=False))
    centered = ledger.clear(centered).view_as(groups)
    out = (centered * torch.rsqrt(centered.square().sum((2, 3, 4), keepdim=True) / counts + eps)).view_as(x)
    out = out if weight is None else out * weight.view(-1, 1, 1)
    out = out if bias is None else out + bias.view(-1, 1, 1)
    # Autocast runs group_norm in float32 on GPUs only.
    out = out if x.is_cuda and torch.is_autocast_enabled("cuda") else out.to(input.dtype)
    return ledger.mark(out, replace(valid, clean=bias is None))


def _expand_as(ledger: PaddingTracker, func: Any, input: Tensor, other: Tensor) -> Tensor:
    if ledger.follows(input) or not _is_position_independent(input, ledger.known(other)):
        raise ledger.refusal("expand_as expands a tensor that may vary by position")
    return ledger.mark(func(input, other).clone(), replace(ledger.known(other), clean=False))


def _linear(ledger: PaddingTracker, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    valid = ledger.known(input)
    if max(valid.dims) == input.ndim - 1:
        raise ledger.refusal("linear is applied along columns")
    return ledger.mark(func(input, weight, bias), replace(valid, clean=valid.clean and bias is None))


def _permute(ledger: PaddingTracker, func: Any, input: Tensor, dims: Any, *more: int) -> Tensor:
    order = [dim % input.ndim for dim in ((dims, *more) if isinstance(dims, int) else dims)]
    valid = ledger.known(input)
    rows, columns = (order.index(dim) for dim in valid.dims)
    if order[0] != 0 or (rows, columns) not in ((2, 3), (1, 2)):
        raise ledger.refusal(f"permute has the order {tuple(order)}")
    return ledger.mark(func(input, order), replace(valid, dims=(rows, columns)))


def _cat(ledger: PaddingTracker, func: Any, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    valids = [ledger.known(tensor) for tensor in tensors if ledger.follows(tensor)]
    first = valids[0]
    same_layout = all((valid.areas, valid.dims) == (first.areas, first.dims) for valid in valids)
    if len(valids) < len(tensors) or not same_layout or dim % tensors[0].ndim != _channel_dim(first):
        raise ledger.refusal(f"cat concatenates along dimension {dim}, or tensors that are not maps of the same images")
    return ledger.mark(func(tensors, dim), replace(first, clean=all(valid.clean for valid in valids)))


def _split(ledger: PaddingTracker, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    valid = ledger.known(input)
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if dim % input.ndim != _channel_dim(valid):
        raise ledger.refusal(f"{plain_name(func)} splits along dimension {dim}")
    return tuple(ledger.mark(part, valid) for part in func(input, *args, **kwargs))


def _getitem(ledger: PaddingTracker, func: Any, input: Tensor, index: Any) -> Tensor:
    valid = ledger.known(input)
    index = index if isinstance(index, tuple) else (index,)
    others = [part for dim, part in enumerate(index) if dim != _channel_dim(valid)]
    if not all(isinstance(part, slice) for part in index) or any(part != slice(None) for part in others):
        raise ledger.refusal("indexing selects part of the map or of the batch")
    return ledger.mark(func(input, index), valid)


def _channel_dim(valid: PaddingState) -> int:
    return 1 if valid.dims == (2, 3) else 3


def _over_positions(x: Tensor, valid: PaddingState, dim: Any) -> bool:
    dims = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
    return sorted(dim % x.ndim for dim in dims) == list(valid.dims)


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {
    **dict.fromkeys((*_UNARY, *_BINARY), _elementwise),
    **dict.fromkeys(_KEEP, _keep),
    **dict.fromkeys(READS, _read),
    "pow": _pow,
    "local_response_norm": _local_response_norm,
    "conv2d": conv2d,
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "pad": pad,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "linear": _linear,
    "expand_as": _expand_as,
    "mean": _mean,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "norm": _norm,
    "permute": _permute,
    "cat": _cat,
    "split": _split,
    "chunk": _split,
    "getitem": _getitem,
}
# Functions that accept a deferred pad as their input.
AFTER_PADDING: dict[str, Rule] = {"conv2d": conv2d, "max_pool2d": max_pool2d, "avg_pool2d": avg_pool2d}
# Functions that accept more than one tracked map.
MULTI_INPUT = {name for name, rule in RULES.items() if rule in (_elementwise, _keep, _read, _expand_as, _cat)}
