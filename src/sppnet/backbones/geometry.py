"""Stride, offset and size of feature maps, traced through the layers of a network."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

# Networks are traced at these (height, width). Size-dependent padding differs between the first two.
_PROBES = ((256, 256), (193, 321), (255, 224))
_PROBED_SIDE = 256  # approximate side at which networks are traced that need multiples


@dataclass(frozen=True)
class Step:
    """A windowed layer along one axis: extent of the dilated window, stride, and padding before and after.

    With `same`, the padding follows TensorFlow's SAME rule for each input size, and `before` and `after` are unused.
    """

    extent: int
    stride: int
    before: int = 0
    after: int = 0
    ceil: bool = False
    same: bool = False

    def cells(self, size: int) -> int:
        """Return the number of output cells for `size` input cells; below 1 if the input is too small."""
        if self.same:
            return -(-size // self.stride)
        span = size + self.before + self.after - self.extent
        cells = (-(-span // self.stride) if self.ceil else span // self.stride) + 1
        # As in torch and Caffe, a window that would start in the trailing padding is dropped.
        if self.ceil and (cells - 1) * self.stride >= size + self.before:
            cells -= 1
        return cells

    def first_centre(self, size: int) -> float:
        """Return the position of the first window's center as a 0-based input index."""
        return (self.extent - 1) / 2 - self.before_of(size)

    def around(self, size: int) -> int:
        """Return the total padding before and after `size` input cells."""
        if not self.same:
            return self.before + self.after
        return max((self.cells(size) - 1) * self.stride + self.extent - size, 0)

    def before_of(self, size: int) -> int:
        """Return the padding before `size` input cells."""
        return self.around(size) // 2 if self.same else self.before


@dataclass(frozen=True)
class Axis:
    """All windowed layers along one axis, from the image to the map.

    Attributes:
        steps: the layers.
        multiple: images are padded at the end to a multiple of this side before the first layer, and the map is cropped
            to the cells that begin within the image.
    """

    steps: tuple[Step, ...]
    multiple: int = 1

    @property
    def stride(self) -> int:
        """Distance between neighboring cells in image pixels."""
        return math.prod(step.stride for step in self.steps)

    def cells(self, size: int) -> int:
        """Return the number of map cells for an image side of `size` pixels; below 1 if the image is too small."""
        cells = self.padded(size)
        for step in self.steps:
            if cells < 1:
                return 0
            cells = step.cells(cells)
        return cells if self.multiple == 1 else min(cells, -(-size // self.stride))

    def padded(self, size: int) -> int:
        """Return the smallest multiple of `multiple` that is at least `size`."""
        return -(-size // self.multiple) * self.multiple

    def first_centre(self, size: int) -> float:
        """Return the first cell's center as a 0-based pixel index, for an image side of `size` pixels."""
        position, jump, size = 0.0, 1, self.padded(size)
        for step in self.steps:
            position += step.first_centre(size) * jump
            jump *= step.stride
            size = step.cells(size)
        return position

    def smallest(self) -> int:
        """Return the smallest image side that yields at least one cell."""
        return next(size for size in range(1, 1 << 16) if self.cells(size) >= 1)


@dataclass(frozen=True)
class Geometry:
    """Size, stride and offset of a network's feature map along both axes."""

    vertical: Axis
    horizontal: Axis

    @property
    def stride(self) -> tuple[int, int]:
        """(vertical, horizontal) distance between neighboring cells in image pixels."""
        return self.vertical.stride, self.horizontal.stride

    @property
    def multiple(self) -> int:
        """Side in pixels whose multiples the network accepts without padding; 1 for any size."""
        return self.vertical.multiple

    @property
    def same(self) -> bool:
        """Whether the network uses TensorFlow's SAME padding, whose amounts depend on the image size."""
        return any(step.same for axis in (self.vertical, self.horizontal) for step in axis.steps)

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (rows, columns) of the map for an image of `height` x `width` pixels."""
        return self.vertical.cells(height), self.horizontal.cells(width)

    def offset(self, height: int, width: int) -> tuple[float, float]:
        """Return the (vertical, horizontal) position of the first cell's center as a 0-based pixel index."""
        return self.vertical.first_centre(height), self.horizontal.first_centre(width)

    def smallest(self) -> tuple[int, int]:
        """Return the smallest (height, width) that yields at least one cell."""
        return self.vertical.smallest(), self.horizontal.smallest()


def trace_geometry(network: nn.Module, features: Callable[[nn.Module, Tensor], Tensor], multiple: int = 1) -> Geometry:
    """Trace the convolutions, pools, pads and patch merges from the image to the map.

    The network runs on the meta device, without arithmetic. Where paths merge, the one with the most layers is used.
    The geometry is derived from two image sizes and verified at three.

    Args:
        network: any network; it is not modified.
        features: function of the network and an image batch (1, 3, H, W) that returns the map (1, C, H', W').
        multiple: side in pixels; images are padded at the bottom and right to multiples of it.

    Raises:
        ValueError: the network does not accept such images, its output is not a map, or the size of the map does not
            follow from its layers.
    """
    skeleton = copy.deepcopy(network).to("meta").eval()
    count = -(-_PROBED_SIDE // (2 * multiple))
    counts = ((2 * count, 2 * count), (2 * count - 1, 2 * count + 1), (2 * count + 1, 2 * count))
    probes = _PROBES if multiple == 1 else [(rows * multiple, columns * multiple) for rows, columns in counts]
    traces = {size: _trace(skeleton, features, *size) for size in probes}
    first, second, *_ = (path for path, _ in traces.values())
    vertical, horizontal = (Axis(_simplify(*steps), multiple) for steps in zip(first, second, strict=True))
    geometry = Geometry(vertical, horizontal)
    for (height, width), (path, size) in traces.items():
        expected = geometry.map_size(height, width)
        if size != expected:
            raise ValueError(f"its layers imply a map of {expected} for a {height} x {width} image, not {size}")
        center = Axis(path[0]).first_centre(height), Axis(path[1]).first_centre(width)
        if center != geometry.offset(height, width):
            raise ValueError(f"its padding of a {height} x {width} image is neither fixed nor TensorFlow's SAME")
    return geometry


class SizeError(ValueError):
    """A network does not accept an image of some size."""


def gives_map(network: nn.Module, features: Callable[[nn.Module, Tensor], Tensor], side: int) -> bool:
    """Return whether a network gives a map of an image of `side` x `side` pixels; arguments as of `trace_geometry`."""
    try:
        _trace(copy.deepcopy(network).to("meta").eval(), features, side, side)
    except ValueError:
        return False
    return True


def _trace(
    network: nn.Module, features: Callable[[nn.Module, Tensor], Tensor], height: int, width: int
) -> tuple["LayerPath", tuple[int, ...]]:
    """Return the layers from an image of this size to its map, and the size of the map."""
    tracer = _Tracer(height, width)
    try:
        # In inference mode, convolutions would not reach the dispatch mode.
        with torch.inference_mode(mode=False), torch.no_grad(), tracer:
            image = torch.empty(1, 3, height, width, device="meta")
            tracer.paths[image] = ((), ())
            data = features(network, image)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise SizeError(f"it does not accept an image of {height} x {width}: {reason}") from error
    path = tracer.paths.get(data) if isinstance(data, Tensor) and data.ndim == 4 else None
    if path is None:
        raise ValueError("its output is not a feature map (N, C, H, W) computed from the image")
    return tracer.aligned(path, data) or path, tuple(data.shape[2:])


def _simplify(steps: tuple[Step, ...], other_steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Merge each asymmetric or size-dependent pad with the window after it into a SAME step.

    Steps that change neither the size nor the cell positions are dropped.

    Args:
        steps: steps traced at one image size.
        other_steps: steps traced at another image size.
    """
    merged: list[Step] = []
    # If the number of layers depends on the image size, the check in trace_geometry fails later.
    for step, other in zip(steps, other_steps, strict=False):
        pad = merged[-1] if merged else None
        # On an even side, the SAME rule pads only strided windows asymmetrically, by one more after than before.
        if pad and pad.extent == 1 < step.extent and (pad.same or pad.after == pad.before + 1):
            merged[-1] = replace(step, same=True)
        else:
            merged.append(step if step == other else replace(step, same=True))
    return tuple(step for step in merged if step.stride > 1 or not _is_centered(step))


def _is_centered(step: Step) -> bool:
    return not step.same and step.before == step.after and 2 * step.before == step.extent - 1


LayerPath = tuple[tuple[Step, ...], tuple[Step, ...]]  # vertical and horizontal


class _Tracer(TorchDispatchMode):
    """Dispatch mode that records the windowed layers between the image and every tensor computed from it."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = height, width
        self.paths: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def aligned(self, path: "LayerPath", x: Tensor) -> "LayerPath | None":
        """Return the path that implies the rows and columns of a tensor, or None if they are not those of a map.

        A tensor with an integer fraction of the rows and columns is the result of merging neighboring cells by a
        reshape, as between the stages of Swin. Others are in another layout, such as windows, tokens or channels last,
        or a single cell computed from all others.
        """
        if x.ndim != 4:
            return None
        cells = [Axis(steps).cells(size) for steps, size in zip(path, self.size, strict=True)]
        rows, columns = x.shape[2:]
        if (rows, columns) == tuple(cells):
            return path
        factor = cells[0] // max(rows, 1)
        if factor < 2 or rows == columns == 1 or [factor * rows, factor * columns] != cells or len(x) > 1:
            return None
        merge = Step(factor, factor)
        return path[0] + (merge,), path[1] + (merge,)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        paths = [self.paths[leaf] for leaf in inputs if leaf in self.paths]
        name = func.overloadpacket.__name__
        if not paths or (name in _REDUCTIONS and _reduces_positions(out, inputs[0])) or _enlarges(name, args):
            return out
        # The output of attention has the positions of its queries, not those of pooled keys and values.
        product = name in _PRODUCTS or "scaled_dot_product" in name
        path = paths[0] if product else max(paths, key=lambda path: len(path[0]))
        aligned = self.aligned(path, args[0]) if name in _WINDOWED else None
        if aligned is not None:
            steps = _WINDOWED[name](*args)
            path = aligned[0] + (steps[0],), aligned[1] + (steps[1],)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.paths[leaf] = path
        return out


def _reduces_positions(out: Any, x: Tensor) -> bool:
    """Return whether a reduction ran over rows or columns, not only over branches or channels."""
    return not isinstance(out, Tensor) or out.shape[-2:] != x.shape[-2:]


def _enlarges(name: str, args: Any) -> bool:
    """Return whether a function enlarges a map; the path then is that of the map to which the result is added."""
    return "upsample" in name or (name == "convolution" and args[6])


# Global reductions end a path: a map multiplied by a gate computed from them keeps its own path.
_PRODUCTS = {"mm", "bmm", "baddbmm"}
_REDUCTIONS = {"mean", "sum", "amax", "max", "var_mean", "_adaptive_avg_pool2d", "adaptive_max_pool2d"}


def _pair(value: list[int]) -> tuple[int, int]:
    return (value[0], value[-1])


def _convolution(
    _x: Tensor, weight: Tensor, _bias: Any, stride: list[int], padding: list[int], dilation: list[int], *_: Any
) -> tuple[Step, Step]:
    sides = zip(weight.shape[2:], _pair(stride), _pair(padding), _pair(dilation), strict=True)
    vertical, horizontal = (Step((k - 1) * d + 1, s, p, p) for k, s, p, d in sides)
    return vertical, horizontal


def _pool(kernel: list[int], stride: list[int], padding: list[int], ceil: bool) -> tuple[Step, Step]:
    sides = zip(_pair(kernel), _pair(stride or kernel), _pair(padding), strict=True)
    vertical, horizontal = (Step(k, s, p, p, ceil) for k, s, p in sides)
    return vertical, horizontal


def _max_pool(
    _x: Tensor,
    kernel: list[int],
    stride: tuple[int, ...] | list[int] = (),
    padding: tuple[int, ...] | list[int] = (0,),
    _dilation: tuple[int, ...] | list[int] = (1,),
    ceil: bool = False,
) -> tuple[Step, Step]:
    return _pool(kernel, list(stride), list(padding), ceil)


def _avg_pool(
    _x: Tensor,
    kernel: list[int],
    stride: tuple[int, ...] | list[int] = (),
    padding: tuple[int, ...] | list[int] = (0,),
    ceil: bool = False,
    *_: Any,
) -> tuple[Step, Step]:
    return _pool(kernel, list(stride), list(padding), ceil)


def _pad(_x: Tensor, padding: list[int], *_: Any) -> tuple[Step, Step]:
    left, right, top, bottom = [*padding, 0, 0][:4]
    return Step(1, 1, top, bottom), Step(1, 1, left, right)


_WINDOWED: dict[str, Callable[..., tuple[Step, Step]]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    "constant_pad_nd": _pad,
    "reflection_pad2d": _pad,
    "replication_pad2d": _pad,
}
