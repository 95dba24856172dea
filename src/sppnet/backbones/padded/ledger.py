"""What is known of the tensors of a padded batch, and ways to give their padding the values that a layer needs."""

import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from sppnet.backbones.padded.norm import Outside, set_outside

Areas = tuple[tuple[int, int], ...]


class PaddingError(ValueError):
    """A network that cannot take padded batches, with the layer and the function that stand in the way."""


@dataclass(frozen=True)
class Valid:
    """What is known of a tensor of a padded batch.

    Attributes:
        areas: valid (rows, columns) of each image, at the top left.
        dims: the tensor's dimensions of rows and columns: (2, 3), or (1, 2) where channels are last.
        clean: whether all cells outside are zero.
    """

    areas: Areas
    dims: tuple[int, int] = (2, 3)
    clean: bool = False


@dataclass(frozen=True)
class Deferred:
    """A padding whose amounts may differ from image to image; it is done by the layer that follows.

    Attributes:
        x: what is padded.
        before, after: cells asked for above and left, below and right, for the batch as a whole.
        value: in them.
    """

    x: Tensor
    before: tuple[int, int]
    after: tuple[int, int]
    value: float


class Ledger:
    """The book of one pass: which tensors come from the padded batch, and what is known of each.

    Attributes:
        network: for the names of its layers in messages.
        same: whether the network pads by TensorFlow's SAME rule, whose amounts depend on the size of each image.
    """

    def __init__(self, network: nn.Module, same: bool) -> None:
        self.network = network
        self.same = same
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._deferred: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._writes: dict[int, int] = {}
        self._now = 0
        self._outside: dict[tuple[Areas, int, int, torch.device], Outside | None] = {}

    def known(self, x: Tensor) -> Valid:
        """What is known of a tensor that is followed; a layer that takes one elsewhere than its input is refused."""
        if x not in self._known:
            raise self.refusal("a map is taken for something else than the input of a layer")
        valid: Valid
        valid, since = self._known[x]
        return replace(valid, clean=False) if valid.clean and self._written(x) > since else valid

    def follows(self, x: Any) -> bool:
        """Whether this is a tensor of the batch, or stands for one."""
        return isinstance(x, Tensor) and (x in self._known or x in self._deferred)

    def mark(self, x: Tensor, valid: Valid) -> Tensor:
        """Remember what is known of a tensor."""
        if x.ndim != 4 or x.shape[0] != len(valid.areas):
            raise self.refusal(f"of {len(valid.areas)} images comes a tensor of shape {tuple(x.shape)}")
        self._known[x] = valid, self._now
        return x

    def wrote(self, x: Tensor) -> None:
        """Take note that a function wrote into a tensor: what was known of others with the same memory has changed."""
        self._now += 1
        self._writes[_memory(x)] = self._now

    def defer(self, shape: Sequence[int], padding: Deferred) -> Tensor:
        """A tensor without memory that stands for a padded one until the next layer."""
        stand_in = padding.x.new_full((), math.nan).expand(list(shape))
        self._deferred[stand_in] = padding, self._now
        return stand_in

    def deferred(self, x: Tensor) -> Deferred | None:
        """The padding that a tensor stands for, if it does."""
        if x not in self._deferred:
            return None
        padding: Deferred
        padding, since = self._deferred[x]
        if self._written(padding.x) > since:
            raise self.refusal("a map is written to after it was padded")
        return padding

    def _written(self, x: Tensor) -> int:
        return self._writes.get(_memory(x), -1)

    def clear(self, x: Tensor) -> Tensor:
        """The tensor with zeros outside; where it is part of no gradient, in place."""
        valid = self.known(x)
        outside = self.outside(x, valid.areas, valid.dims)
        if valid.clean or outside is None:
            return x
        copied = torch.is_grad_enabled() or x.requires_grad
        cleared = cleared_copy(x, outside, valid.dims) if copied else _set(x, outside, valid.dims)
        return self.mark(cleared, replace(valid, clean=True))

    def seal(self, x: Tensor) -> Tensor:
        """The tensor with ones outside, where all powers are finite and so are their slopes; no gradient comes back."""
        valid = self.known(x)
        outside = self.outside(x, valid.areas, valid.dims)
        if outside is None or not torch.is_grad_enabled():
            return x
        return self.mark(cleared_copy(x, outside, valid.dims, 1.0), replace(valid, clean=False))

    def outside(self, x: Tensor, areas: Areas, dims: tuple[int, int] = (2, 3)) -> Outside | None:
        """Where the cells outside are; None where there are none."""
        rows, columns = (x.shape[dim] for dim in dims)
        key = areas, rows, columns, x.device
        if key not in self._outside:
            if all(area == (rows, columns) for area in areas):
                self._outside[key] = None
            else:
                mask = torch.ones(len(areas), rows, columns, dtype=torch.bool)
                for index, (height, width) in enumerate(areas):
                    mask[index, :height, :width] = False
                image, row, column = (index.to(x.device) for index in mask.nonzero(as_tuple=True))
                self._outside[key] = image, row, column
        return self._outside[key]

    def refusal(self, why: str) -> PaddingError:
        """What is raised for a layer that cannot be exact."""
        names = {module: name for name, module in self.network.named_modules()}
        owners = (frame.frame.f_locals.get("self") for frame in inspect.stack(0))
        layer = next((owner for owner in owners if isinstance(owner, nn.Module) and owner in names), None)
        where = f" in {names[layer] or 'the network'} ({type(layer).__name__})" if layer is not None else ""
        return PaddingError(
            f"sizes: this network cannot take images of different sizes in one batch: {why}{where}; give it images of"
            " one size at a time"
        )


def place(
    x: Float[Tensor, "n c h w"],
    areas: Areas,
    befores: Sequence[tuple[int, int]],
    size: tuple[int, int],
    value: float,
) -> Float[Tensor, "n c a b"]:
    """Each image's own cells at a place of its own in a larger map.

    Args:
        x: a padded batch; what it has outside is not read.
        areas: valid (rows, columns) of each image.
        befores: where the first cell of each image comes to lie; cells that then lie beyond `size` are left out.
        size: (rows, columns) of the result.
        value: of the cells around.
    """
    placed: Tensor = _Place.apply(x, areas, tuple(befores), size, value)
    return placed


def cleared_copy(x: Tensor, outside: Outside, dims: tuple[int, int] = (2, 3), value: float = 0.0) -> Tensor:
    """A copy with zeros, or another value, outside, of which no gradient comes back from there."""
    copied: Tensor = _Clear.apply(x, outside, dims, value)
    return copied


def _memory(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _set(x: Tensor, outside: Outside, dims: tuple[int, int], value: float = 0.0) -> Tensor:
    if dims == (2, 3):
        return set_outside(x, outside, value)
    x[outside] = value  # channels are last
    return x


class _Clear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, outside: Outside, dims: tuple[int, int], value: float) -> Tensor:
        ctx.outside, ctx.dims = outside, dims
        return _set(x.clone(), outside, dims, value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _set(grad.clone(), ctx.outside, ctx.dims), None, None, None


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, areas: Areas, befores: tuple[tuple[int, int], ...], size: tuple[int, int], value: float
    ) -> Tensor:
        ctx.shape, ctx.layout, ctx.areas, ctx.befores = x.shape, _memory_format(x), areas, befores
        shape = (*x.shape[:2], *size)
        placed = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=ctx.layout).fill_(value)
        for here, there in _pairs(areas, befores, size):
            placed[there] = x[here]
        return placed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_x = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout).zero_()
        for here, there in _pairs(ctx.areas, ctx.befores, grad.shape[2:]):
            of_x[here] = grad[there]
        return of_x, None, None, None, None


def _pairs(areas: Areas, befores: Sequence[tuple[int, int]], size: Sequence[int]) -> Iterable[tuple[Any, Any]]:
    for index, ((height, width), (top, left)) in enumerate(zip(areas, befores, strict=True)):
        height, width = min(height, size[0] - top), min(width, size[1] - left)
        here = (index, slice(None), slice(0, height), slice(0, width))
        yield here, (index, slice(None), slice(top, top + height), slice(left, left + width))


def _memory_format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
