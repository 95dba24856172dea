"""Where the cells of a feature map lie on the image, read off any network by following its layers."""

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

# A network is followed at these (height, width). The first two tell paddings that depend on the size.
_PROBES = ((256, 256), (193, 321), (255, 224))


@dataclass(frozen=True)
class Step:
    """One windowed layer along one axis: its window's extent, its stride and the cells padded before and after.

    With `same`, the padding is what TensorFlow's SAME rule gives for the size at hand and is not stored.
    """

    extent: int
    stride: int
    before: int = 0
    after: int = 0
    ceil: bool = False
    same: bool = False

    def cells(self, size: int) -> int:
        """Output cells for `size` input cells; below 1 where the input is too small."""
        if self.same:
            return -(-size // self.stride)
        room = size + self.before + self.after - self.extent
        cells = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
        # A window that would begin in the padding after the input is left out, as torch and Caffe do.
        if self.ceil and (cells - 1) * self.stride >= size + self.before:
            cells -= 1
        return cells

    def first_centre(self, size: int) -> float:
        """Input index under the centre of the first window."""
        return (self.extent - 1) / 2 - self.before_of(size)

    def around(self, size: int) -> int:
        """Cells padded before and after `size` input cells, together."""
        if not self.same:
            return self.before + self.after
        return max((self.cells(size) - 1) * self.stride + self.extent - size, 0)

    def before_of(self, size: int) -> int:
        """Cells padded before `size` input cells."""
        return self.around(size) // 2 if self.same else self.before


@dataclass(frozen=True)
class Axis:
    """All windowed layers along one axis, from the image to the map."""

    steps: tuple[Step, ...]

    @property
    def stride(self) -> int:
        """Image pixels from one cell to the next."""
        return math.prod(step.stride for step in self.steps)

    def cells(self, size: int) -> int:
        """Cells of the map for an image side of `size` pixels; below 1 where the image is too small."""
        for step in self.steps:
            if size < 1:
                return 0
            size = step.cells(size)
        return size

    def first_centre(self, size: int) -> float:
        """0-based index of the pixel under the first cell's centre, for an image side of `size` pixels."""
        position, jump = 0.0, 1
        for step in self.steps:
            position += step.first_centre(size) * jump
            jump *= step.stride
            size = step.cells(size)
        return position

    def smallest(self) -> int:
        """Smallest image side that gives at least one cell."""
        return next(size for size in range(1, 1 << 16) if self.cells(size) >= 1)


@dataclass(frozen=True)
class Geometry:
    """Sizes, strides and first centres of a network's map, vertical and horizontal."""

    vertical: Axis
    horizontal: Axis

    @property
    def stride(self) -> tuple[int, int]:
        """(vertical, horizontal) pixels from one cell to the next."""
        return self.vertical.stride, self.horizontal.stride

    @property
    def same(self) -> bool:
        """Whether the network pads by TensorFlow's SAME rule, by amounts that follow from each image's size."""
        return any(step.same for axis in (self.vertical, self.horizontal) for step in axis.steps)

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the map for an image of height x width pixels."""
        return self.vertical.cells(height), self.horizontal.cells(width)

    def offset(self, height: int, width: int) -> tuple[float, float]:
        """(vertical, horizontal) 0-based index of the pixel under the first cell's centre."""
        return self.vertical.first_centre(height), self.horizontal.first_centre(width)

    def smallest(self) -> tuple[int, int]:
        """Smallest (height, width) that gives at least one cell."""
        return self.vertical.smallest(), self.horizontal.smallest()


def trace_geometry(network: nn.Module, features: Callable[[nn.Module, Tensor], Tensor]) -> Geometry:
    """Follow every convolution, pooling and padding from the image to the map.

    The network runs on the meta device, so it costs no arithmetic; where paths join, the one with most layers
    counts. The result is checked at three sizes, of which it was read off two.

    Args:
        network: any network of convolutional form.
        features: takes the network and an image batch (1, 3, H, W) to the map (1, C, H', W').

    Raises:
        ValueError: the network takes images of one size only, or its maps do not follow from its windowed layers
            (patch merging, tokens).
    """
    skeleton = copy.deepcopy(network).to("meta").eval()
    traces = {size: _follow(skeleton, features, *size) for size in _PROBES}
    first, second, *_ = (path for path, _ in traces.values())
    geometry = Geometry(Axis(_simplify(first[0], second[0])), Axis(_simplify(first[1], second[1])))
    for (height, width), ((vertical, horizontal), found) in traces.items():
        expected = geometry.map_size(height, width)
        if found != expected:
            raise ValueError(f"its map of a {height} x {width} image is {found}; its layers make {expected}")
        centre = Axis(vertical).first_centre(height), Axis(horizontal).first_centre(width)
        if centre != geometry.offset(height, width):
            raise ValueError(f"its padding of a {height} x {width} image is neither fixed nor TensorFlow's SAME")
    return geometry


def _follow(
    network: nn.Module, features: Callable[[nn.Module, Tensor], Tensor], height: int, width: int
) -> tuple["Path", tuple[int, ...]]:
    """The layers from an image of this size to its map, and the size of the map."""
    tracer = _Tracer()
    try:
        # Inside inference mode the dispatcher would not show the convolutions.
        with torch.inference_mode(mode=False), torch.no_grad(), tracer:
            image = torch.empty(1, 3, height, width, device="meta")
            tracer.paths[image] = ((), ())
            data = features(network, image)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"it does not take an image of {height} x {width}: {reason}") from error
    path = tracer.paths.get(data) if isinstance(data, Tensor) and data.ndim == 4 else None
    if path is None:
        raise ValueError("its output is not a map that follows from convolutions and pools")
    return path, tuple(data.shape[2:])


def _simplify(steps: tuple[Step, ...], elsewhere: tuple[Step, ...]) -> tuple[Step, ...]:
    """Join each padding that is lopsided or depends on the size with its window into a SAME step.

    Steps that change nothing are dropped.

    Args:
        steps: from an image of one size.
        elsewhere: from an image of another size.
    """
    joined: list[Step] = []
    # Networks whose layers differ in number with the size are found out when the result is checked.
    for step, other in zip(steps, elsewhere, strict=False):
        padding = joined[-1] if joined else None
        # On an even side the SAME rule pads strided windows by one more after than before, and no others.
        if padding and padding.extent == 1 < step.extent and (padding.same or padding.after == padding.before + 1):
            joined[-1] = replace(step, same=True)
        else:
            joined.append(step if step == other else replace(step, same=True))
    return tuple(step for step in joined if step.stride > 1 or not _keeps_place(step))


def _keeps_place(step: Step) -> bool:
    return not step.same and step.before == step.after and 2 * step.before == step.extent - 1


Path = tuple[tuple[Step, ...], tuple[Step, ...]]


class _Tracer(TorchDispatchMode):
    """Remembers, for every tensor on its way from the image, the windowed layers that it went through."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.paths: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        paths = [self.paths[leaf] for leaf in inputs if leaf in self.paths]
        name = func.overloadpacket.__name__
        if not paths or (name in _GLOBAL and _forgets_place(out, inputs[0])):
            return out
        path = max(paths, key=lambda p: len(p[0]))
        if name in _WINDOWED:
            steps = _WINDOWED[name](*args)
            path = path[0] + (steps[0],), path[1] + (steps[1],)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.paths[leaf] = path
        return out


def _forgets_place(out: Any, x: Tensor) -> bool:
    """Whether a reduction ran over the map's sides, and not over branches or channels alone."""
    return not isinstance(out, Tensor) or out.shape[-2:] != x.shape[-2:]


# Reductions forget where they came from: a gate computed from them takes its place from the map it gates.
_GLOBAL = {"mean", "sum", "amax", "max", "var_mean", "_adaptive_avg_pool2d", "adaptive_max_pool2d"}


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
}
