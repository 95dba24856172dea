"""The SPP and SPPF blocks of YOLO."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.errors import check_choice
from sppnet.layers.names import Norm
from sppnet.layers.norms import conv_block
from sppnet.ops.sliding_max import parse_kernels, sliding_max

Order = Literal["input-first", "darknet"]


class SPP(nn.Module):
    """YOLO's SPP block: concatenation of a map with its stride-1 max pools, which keeps the map size.

    A 1x1 convolution halves the channels, its output is concatenated with the pools, and another 1x1 convolution maps
    them to `out_channels`; both have normalization and activation. The pools are computed by
    :func:`sppnet.ops.sliding_max.sliding_max`.

    This is not the layer of the SPP-net paper, whose output is a vector: see :class:`SpatialPyramidPool`. A window of
    side k covers a whole map of side <= (k + 1) / 2, so on maps of up to 7 x 7 cells k = 13 is global max pooling.

    Args:
        in_channels: number of input channels, >= 2.
        out_channels: number of output channels.
        kernels: window sides in cells, odd and strictly increasing.
        order: order of concatenation: ``input-first``, the map and then the pools by increasing kernel (YOLOv5 and
            later), or ``darknet``, the reverse (YOLOv4).
        norm: kind of normalization, see :func:`sppnet.layers.norms.create_norm`; the default allows batch size 1.
        activation: factory of the activation module; Darknet uses leaky ReLU or Mish.

    Raises:
        ValueError: an unknown order, fewer than 2 input channels, or invalid kernels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernels: Sequence[int] = (5, 9, 13),
        *,
        order: Order = "input-first",
        norm: Norm = "safe",
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        check_choice("order", order, get_args(Order))
        if in_channels < 2:
            raise ValueError(f"in_channels: expected at least 2, got {in_channels}")
        self.kernels = parse_kernels(kernels)
        self.order: Order = order
        half = in_channels // 2
        self.halve = conv_block(in_channels, half, 1, norm, activation=activation)
        self.join = conv_block(half * (1 + len(self.kernels)), out_channels, 1, norm, activation=activation)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h w"]:
        """Halve the channels, pool, concatenate and convolve."""
        x = self.halve(x)
        maps = [x, *sliding_max(x, self.kernels)]
        if self.order == "darknet":
            maps.reverse()
        out: Tensor = self.join(torch.cat(maps, 1))
        return out

    def extra_repr(self) -> str:
        """Return the kernels and the order for ``print(module)``."""
        return f"kernels={self.kernels}, order={self.order!r}"


class SPPF(SPP):
    """:class:`SPP` with the arguments of YOLOv5's SPPF, which applies one pool repeatedly.

    ``SPPF(kernel=k, repeats=n)`` equals ``SPP(kernels=(k, 2 * k - 1, 3 * k - 2, ...))`` with n kernels and the same
    weights. Both are equally fast, since both use the fastest exact implementation.

    Args:
        in_channels, out_channels, order, norm, activation: see :class:`SPP`.
        kernel: window side of the repeated pool, odd, >= 3.
        repeats: number of pools, >= 1.

    Raises:
        ValueError: an even or too small kernel, no repeats, or an invalid argument of :class:`SPP`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 5,
        repeats: int = 3,
        *,
        order: Order = "input-first",
        norm: Norm = "safe",
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        if kernel < 3 or kernel % 2 == 0:
            nearest = f"{kernel - 1} or {kernel + 1}" if kernel > 3 else "3"
            raise ValueError(f"kernel: expected an odd number of at least 3, got {kernel}; nearest: {nearest}")
        if repeats < 1:
            raise ValueError(f"repeats: expected at least 1, got {repeats}")
        kernels = [1 + (kernel - 1) * times for times in range(1, repeats + 1)]
        super().__init__(in_channels, out_channels, kernels, order=order, norm=norm, activation=activation)
