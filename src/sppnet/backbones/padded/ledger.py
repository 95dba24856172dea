"""Tracking of padding through the tensors of a padded batch, and functions that overwrite it."""

import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from sppnet.backbones.padded.norm import PaddingIndices, fill_padding

Areas = tuple[tuple[int, int], ...]


class PaddingError(ValueError):
    """Raised for networks that do not support padded batches; the message names the layer and the function."""


@dataclass(frozen=True)
class PaddingState:
    """Valid areas and padding state of a tensor of a padded batch.

    Attributes:
        areas: valid (rows, columns) of each image, at the top left.
        dims: row and column dimensions of the tensor, (2, 3), or (1, 2) for channels-last.
        clean: whether all padding cells are zero.
    """

    areas: Areas
    dims: tuple[int, int] = (2, 3)
    clean: bool = False


@dataclass(frozen=True)
class DeferredPad:
    """A pad operation that the next layer performs, because its amounts may differ between images.

    Attributes:
        x: input of the pad.
        before, after: requested (vertical, horizontal) amounts for the whole batch: (top, left) and (bottom, right).
        value: fill value.
    """

    x: Tensor
    before: tuple[int, int]
    after: tuple[int, int]
    value: float


class PaddingTracker:
    """Registry of the tensors computed from a padded batch in one forward pass.

    Attributes:
        network: network that runs, for the layer names in messages.
        same: whether the network uses TensorFlow's SAME padding, whose amounts depend on the size of each image.
    """

    def __init__(self, network: nn.Module, same: bool) -> None:
        self.network = network
        self.same = same
        self._valid: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._deferred: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._writes: dict[int, int] = {}  # storage id: index of its last in-place write
        self._write_count = 0
        self._outside: dict[tuple[Areas, int, int, torch.device], PaddingIndices | None] = {}

    def known(self, x: Tensor) -> PaddingState:
        """Return the padding state of a tracked tensor.

        Raises:
            PaddingError: `x` is not tracked: the tracked map was passed as another argument.
        """
        if x not in self._valid:
            raise self.refusal("a map is used as something other than the input of a layer")
        valid: PaddingState
        valid, since = self._valid[x]
        return replace(valid, clean=False) if valid.clean and self._last_write(x) > since else valid

    def follows(self, x: Any) -> bool:
        """Return whether `x` is a tracked tensor or the stand-in of a deferred pad."""
        return isinstance(x, Tensor) and (x in self._valid or x in self._deferred)

    def mark(self, x: Tensor, valid: PaddingState) -> Tensor:
        """Track a tensor with the given padding state and return it."""
        if x.ndim != 4 or x.shape[0] != len(valid.areas):
            raise self.refusal(f"a tensor of shape {tuple(x.shape)} is not a map of the {len(valid.areas)} images")
        self._valid[x] = valid, self._write_count
        return x

    def wrote(self, x: Tensor) -> None:
        """Record an in-place write, which invalidates the `clean` flag of all tensors that share its memory."""
        self._write_count += 1
        self._writes[_storage_id(x)] = self._write_count

    def defer(self, shape: Sequence[int], padding: DeferredPad) -> Tensor:
        """Return a stand-in, without memory, for the padded tensor until the next layer."""
        stand_in = padding.x.new_full((), math.nan).expand(list(shape))
        self._deferred[stand_in] = padding, self._write_count
        return stand_in

    def deferred(self, x: Tensor) -> DeferredPad | None:
        """Return the deferred pad that a stand-in represents, None for other tensors."""
        if x not in self._deferred:
            return None
        padding: DeferredPad
        padding, since = self._deferred[x]
        if self._last_write(padding.x) > since:
            raise self.refusal("a map is modified after it was padded")
        return padding

    def _last_write(self, x: Tensor) -> int:
        return self._writes.get(_storage_id(x), -1)

    def clear(self, x: Tensor) -> Tensor:
        """Return the tensor with zeros in the padding, set in place if no gradient is needed."""
        valid = self.known(x)
        outside = self.outside(x, valid.areas, valid.dims)
        if valid.clean or outside is None:
            return x
        copied = torch.is_grad_enabled() or x.requires_grad
        cleared = cleared_copy(x, outside, valid.dims) if copied else _set(x, outside, valid.dims)
        return self.mark(cleared, replace(valid, clean=True))

    def seal(self, x: Tensor) -> Tensor:
        """Return the tensor with ones in the padding, so that all powers and their derivatives are finite there."""
        valid = self.known(x)
        outside = self.outside(x, valid.areas, valid.dims)
        if outside is None or not torch.is_grad_enabled():
            return x
        return self.mark(cleared_copy(x, outside, valid.dims, 1.0), replace(valid, clean=False))

    def outside(self, x: Tensor, areas: Areas, dims: tuple[int, int] = (2, 3)) -> PaddingIndices | None:
        """Return the indices of the padding cells, None if there is no padding."""
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
        """Return the error for an unsupported call; the calling layer is taken from the stack."""
        names = {module: name for name, module in self.network.named_modules()}
        callers = (frame.frame.f_locals.get("self") for frame in inspect.stack(0))
        layer = next((caller for caller in callers if isinstance(caller, nn.Module) and caller in names), None)
        where = f" in {names[layer] or 'the network'} ({type(layer).__name__})" if layer is not None else ""
        return PaddingError(
            f"sizes: this network does not support images of different sizes in one batch: {why}{where}; pass images"
            " of one size at a time"
        )


def copy_to_canvas(
    x: Float[Tensor, "n c h w"],
    areas: Areas,
    befores: Sequence[tuple[int, int]],
    size: tuple[int, int],
    value: float,
) -> Float[Tensor, "n c a b"]:
    """Copy the valid cells of each image to its own position in a new map.

    Args:
        x: padded batch; its padding is not read.
        areas: valid (rows, columns) of each image.
        befores: (row, column) of each image's first cell in the result; cells beyond `size` are dropped.
        size: (rows, columns) of the result.
        value: fill value of the other cells.
    """
    placed: Tensor = _Place.apply(x, areas, tuple(befores), size, value)
    return placed


def cleared_copy(x: Tensor, outside: PaddingIndices, dims: tuple[int, int] = (2, 3), value: float = 0.0) -> Tensor:
    """Return a copy with a constant in the padding, from which no gradient flows back."""
    copied: Tensor = _Clear.apply(x, outside, dims, value)
    return copied


def _storage_id(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _set(x: Tensor, outside: PaddingIndices, dims: tuple[int, int], value: float = 0.0) -> Tensor:
    if dims == (2, 3):
        return fill_padding(x, outside, value)
    x[outside] = value  # channels are last
    return x


class _Clear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, outside: PaddingIndices, dims: tuple[int, int], value: float) -> Tensor:
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
        for source, target in _slices(areas, befores, size):
            placed[target] = x[source]
        return placed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout).zero_()
        for source, target in _slices(ctx.areas, ctx.befores, grad.shape[2:]):
            grad_x[source] = grad[target]
        return grad_x, None, None, None, None


def _slices(areas: Areas, befores: Sequence[tuple[int, int]], size: Sequence[int]) -> Iterable[tuple[Any, Any]]:
    for index, ((height, width), (top, left)) in enumerate(zip(areas, befores, strict=True)):
        height, width = min(height, size[0] - top), min(width, size[1] - left)
        source = (index, slice(None), slice(0, height), slice(0, width))
        yield source, (index, slice(None), slice(top, top + height), slice(left, left + width))


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
