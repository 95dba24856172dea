"""What each torch function does to a padded batch; see `mode`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.backbones.padded.ledger import Ledger, Valid
from sppnet.backbones.padded.norm import arguments, valid_batch_norm
from sppnet.backbones.padded.windows import avg_pool2d, conv2d, max_pool2d, pad

# Functions of one cell at a time, some of them with constants.
_UNARY = (
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "silu", "mish", "gelu", "hardswish", "hardsigmoid",
    "hardtanh", "clamp", "tanh", "sigmoid", "logsigmoid", "softplus", "softsign", "abs", "neg", "square", "dropout",
)  # fmt: skip
# Those of several maps, or of a map and one value an image or channel.
_JOINING = ("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "div", "true_divide", "addcmul")
_KEEP = ("contiguous", "to", "float", "half", "bfloat16", "type", "clone", "detach", "type_as", "requires_grad")
# What only asks a tensor for its form.
READS = (
    "get",
    "dim",
    "size",
    "stride",
    "is_contiguous",
    "is_floating_point",
    "get_device",
    "len",
    "assert",
    "new_empty",
)


def plain_name(func: Any) -> str:
    """Name of a torch function without the marks of its in-place and operator forms."""
    return str(getattr(func, "__name__", func)).strip("_")


def _cellwise(book: Ledger, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Arithmetic of one cell at a time; other operands may differ by image and channel, not by place."""
    name = plain_name(func)
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    maps = [tensor for tensor in tensors if book.follows(tensor)]
    first, *others = (book.known(tensor) for tensor in maps)
    alike = all((valid.areas, valid.dims) == (first.areas, first.dims) for valid in others)
    if not alike or any(x.shape[dim] != maps[0].shape[dim] for x in maps for dim in first.dims):
        raise book.refusal(f"{name} joins maps of different images or layouts")
    for other in tensors:
        if not book.follows(other) and not _same_everywhere(other, first):
            raise book.refusal(f"{name} takes a map of {tuple(other.shape)} that does not follow from the images")
    if "div" in name and not (len(maps) == 1 and args and args[0] is maps[0]):
        raise book.refusal(f"{name} divides by a map, which outside may be 0")
    clean = first.clean and all(valid.clean for valid in others)
    if clean and name not in ("mul", "rmul", "imul", "div", "true_divide", "dropout"):
        # Zeros and constants may make something else; where other tensors take part, it is not tried.
        clean = len(maps) == len(tensors) and not _at_zero(func, args, kwargs)
    out: Tensor = func(*args, **kwargs)
    if any(out is tensor for tensor in tensors):
        book.wrote(out)
    return book.mark(out, replace(first, clean=clean))


def _same_everywhere(x: Tensor, valid: Valid) -> bool:
    return x.ndim <= 4 and all(x.shape[dim - 4] == 1 for dim in valid.dims if 4 - dim <= x.ndim)


def _at_zero(func: Any, args: Any, kwargs: dict[str, Any]) -> float:
    zero = [torch.zeros(()) if isinstance(value, Tensor) else value for value in (*args, *kwargs.values())]
    return float(func(*zero[: len(args)], **dict(zip(kwargs, zero[len(args) :], strict=True))))


def _pow(book: Ledger, func: Any, input: Any, exponent: Any) -> Tensor:
    if not (book.follows(input) and isinstance(exponent, int | float)) or func.__name__ == "pow_":
        raise book.refusal("pow is in place, or its exponent is not a number")
    # The slope of other powers may be infinite outside, and NaN once a gradient of 0 comes for it.
    smooth = exponent >= 1 and float(exponent).is_integer()
    return _cellwise(book, func, input if smooth else book.seal(input), exponent)


def _local_response_norm(book: Ledger, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    valid = book.known(input)
    if valid.dims != (2, 3):
        raise book.refusal("local_response_norm sees a map whose channels are last")
    return book.mark(func(input, *args, **kwargs), replace(valid, clean=False))


def _keep(book: Ledger, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    out = func(x, *args, **kwargs)
    # Of another tensor, `to` and `type_as` ask for the type alone; and `type` may answer with a name.
    return book.mark(out, book.known(x)) if book.follows(x) and isinstance(out, Tensor) else out


def _read(book: Ledger, func: Any, *args: Any, **kwargs: Any) -> Any:
    out = func(*args, **kwargs)
    if plain_name(func) == "get" and isinstance(out, Tensor):
        raise book.refusal("an attribute of the map is taken for a tensor")
    return out


def _batch_norm(book: Ledger, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    valid = book.known(input)
    if func is not F.batch_norm or valid.dims != (2, 3):
        raise book.refusal("batch_norm is torch's inner one, or sees a map whose channels are last")
    values = arguments(input, *args, **kwargs)
    if not values.pop("training"):
        return book.mark(func(input, *args, **kwargs), replace(valid, clean=False))
    outside = book.outside(input, valid.areas)
    return book.mark(valid_batch_norm(**values, outside=outside), replace(valid, clean=True))


def _mean(
    book: Ledger, _func: Any, input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """The mean over all cells of an image: of its valid cells, from here on a vector."""
    valid = book.known(input)
    if not _over_cells(input, valid, dim):
        raise book.refusal(f"mean runs over the dimensions {dim}")
    # Sums of 16-bit numbers leave their range, and counts have no exact place in it.
    dtype = dtype or input.dtype
    total = book.clear(input).sum(valid.dims, keepdim=keepdim, dtype=torch.promote_types(dtype, torch.float32))
    counts = total.new_tensor([height * width for height, width in valid.areas])
    return (total / counts.view(-1, *[1] * (total.ndim - 1))).to(dtype)


def _adaptive_avg_pool2d(book: Ledger, func: Any, input: Tensor, output_size: Any) -> Tensor:
    if book.known(input).dims != (2, 3) or output_size not in (1, (1, 1), [1, 1]):
        raise book.refusal(f"adaptive_avg_pool2d makes a map of {output_size} cells")
    return _mean(book, func, input, (2, 3), keepdim=True)


def _norm(
    book: Ledger, func: Any, input: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    valid = book.known(input)
    if p not in (1, 2, "fro") or not _over_cells(input, valid, dim):
        raise book.refusal(f"norm of order {p} runs over the dimensions {dim}")
    out: Tensor = func(book.clear(input), p=p, dim=dim, keepdim=keepdim, dtype=dtype)
    return out


def _layer_norm(
    book: Ledger, func: Any, input: Tensor, normalized_shape: Sequence[int], *args: Any, **kw: Any
) -> Tensor:
    valid = book.known(input)
    if max(valid.dims) >= input.ndim - len(normalized_shape):
        raise book.refusal("layer_norm runs over the cells of the map")
    return book.mark(func(input, normalized_shape, *args, **kw), replace(valid, clean=False))


def _group_norm(
    book: Ledger,
    _func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    valid = book.known(input)
    if valid.dims != (2, 3):
        raise book.refusal("group_norm sees a map whose channels are last")
    x = book.clear(input).to(torch.promote_types(input.dtype, torch.float32))
    groups = x.view(len(x), num_groups, -1, *x.shape[2:])
    counts = x.new_tensor([height * width for height, width in valid.areas]).view(-1, 1, 1, 1, 1) * groups.shape[2]
    mean = groups.sum((2, 3, 4), keepdim=True) / counts
    centred = book.mark((groups - mean).view_as(x), replace(valid, clean=False))
    centred = book.clear(centred).view_as(groups)
    out = (centred * torch.rsqrt(centred.square().sum((2, 3, 4), keepdim=True) / counts + eps)).view_as(x)
    out = out if weight is None else out * weight.view(-1, 1, 1)
    out = out if bias is None else out + bias.view(-1, 1, 1)
    # Autocast has it in float32 on GPUs alone.
    out = out if x.is_cuda and torch.is_autocast_enabled("cuda") else out.to(input.dtype)
    return book.mark(out, replace(valid, clean=bias is None))


def _expand_as(book: Ledger, func: Any, input: Tensor, other: Tensor) -> Tensor:
    if book.follows(input) or not _same_everywhere(input, book.known(other)):
        raise book.refusal("expand_as spreads a map and not one value an image or channel")
    return book.mark(func(input, other).clone(), replace(book.known(other), clean=False))


def _linear(book: Ledger, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    valid = book.known(input)
    if max(valid.dims) == input.ndim - 1:
        raise book.refusal("linear runs over the columns of the map")
    return book.mark(func(input, weight, bias), replace(valid, clean=valid.clean and bias is None))


def _permute(book: Ledger, func: Any, input: Tensor, dims: Any, *more: int) -> Tensor:
    order = [dim % input.ndim for dim in ((dims, *more) if isinstance(dims, int) else dims)]
    valid = book.known(input)
    rows, columns = (order.index(dim) for dim in valid.dims)
    if order[0] != 0 or (rows, columns) not in ((2, 3), (1, 2)):
        raise book.refusal(f"permute gives the order {tuple(order)}")
    return book.mark(func(input, order), replace(valid, dims=(rows, columns)))


def _cat(book: Ledger, func: Any, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    known = [book.known(tensor) for tensor in tensors if book.follows(tensor)]
    first = known[0]
    alike = all((valid.areas, valid.dims) == (first.areas, first.dims) for valid in known)
    if len(known) < len(tensors) or not alike or dim % tensors[0].ndim != _channels(first):
        raise book.refusal(f"cat joins along dimension {dim}, or maps that are not of the same images")
    return book.mark(func(tensors, dim), replace(first, clean=all(valid.clean for valid in known)))


def _split(book: Ledger, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    valid = book.known(input)
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if dim % input.ndim != _channels(valid):
        raise book.refusal(f"{plain_name(func)} cuts along dimension {dim}")
    return tuple(book.mark(part, valid) for part in func(input, *args, **kwargs))


def _getitem(book: Ledger, func: Any, input: Tensor, index: Any) -> Tensor:
    valid = book.known(input)
    index = index if isinstance(index, tuple) else (index,)
    others = [one for dim, one in enumerate(index) if dim != _channels(valid)]
    if not all(isinstance(one, slice) for one in index) or any(one != slice(None) for one in others):
        raise book.refusal("a part of the map or of the batch is taken")
    return book.mark(func(input, index), valid)


def _channels(valid: Valid) -> int:
    return 1 if valid.dims == (2, 3) else 3


def _over_cells(x: Tensor, valid: Valid, dim: Any) -> bool:
    dims = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
    return sorted(one % x.ndim for one in dims) == list(valid.dims)


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {
    **dict.fromkeys((*_UNARY, *_JOINING), _cellwise),
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
AFTER_PADDING: dict[str, Rule] = {"conv2d": conv2d, "max_pool2d": max_pool2d, "avg_pool2d": avg_pool2d}
# Functions that take more than one map of the images.
OF_SEVERAL = {name for name, rule in RULES.items() if rule in (_cellwise, _keep, _read, _expand_as, _cat)}
