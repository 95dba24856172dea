"""The SPP and SPPF blocks of YOLO."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.errors import choose
from sppnet.layers.norms import Norm, conv_block
from sppnet.ops.sliding_max import parse_kernels, sliding_max

Order = Literal["input-first", "darknet"]


class SPP(nn.Module):
    """YOLO's spatial pyramid pooling: beside the map its maxima over windows around each cell; the size stays.

    This is not the paper's layer, which gives a vector of one length: see :class:`SpatialPyramidPool`. A window of
    k >= 2 * side - 1 sees the whole side, so on maps of up to 7 x 7 cells that of 13 is the global maximum.

    A 1x1 convolution halves the channels, the maxima are set beside its result, and a 1x1 convolution leads to
    `out_channels`; both have normalisation and activation. How the maxima are computed depends on the map alone, see
    :func:`sppnet.ops.sliding_max.sliding_max`.

    Args:
        in_channels: channels that come, at least 2.
        out_channels: channels that go.
        kernels: sides of the windows in cells, odd, each larger than the one before.
        order: how the second convolution finds its input: ``input-first``, the map and then the maxima by size
            (YOLOv5 and later), or ``darknet``, the largest window first and the map last (YOLOv4).
        norm: see :func:`sppnet.layers.norms.create_norm`; the default trains at batch 1.
        activation: makes the activation; Darknet has leaky ReLU or Mish.

    Raises:
        ValueError: an unknown order, fewer than 2 channels, or wrong kernels.
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
        choose("order", order, get_args(Order))
        if in_channels < 2:
            raise ValueError(f"in_channels: expected at least 2, to be halved; got {in_channels}")
        self.kernels = parse_kernels(kernels)
        self.order: Order = order
        half = in_channels // 2
        self.halve = conv_block(in_channels, half, 1, norm, activation=activation)
        self.join = conv_block(half * (1 + len(self.kernels)), out_channels, 1, norm, activation=activation)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h w"]:
        """Halve, pool, concatenate, convolve."""
        x = self.halve(x)
        maps = [x, *sliding_max(x, self.kernels)]
        if self.order == "darknet":
            maps.reverse()
        out: Tensor = self.join(torch.cat(maps, 1))
        return out

    def extra_repr(self) -> str:
        """Windows and order, for print(module)."""
        return f"kernels={self.kernels}, order={self.order!r}"


class SPPF(SPP):
    """:class:`SPP` by the name and arguments of YOLOv5's faster form, which pools its own result again.

    ``SPPF(kernel=k, repeats=n)`` is ``SPP(kernels=(k, 2 * k - 1, 3 * k - 2, ...))`` with n windows: the same weights
    give the same map, and neither is faster, since both take the fastest exact way.

    Args:
        in_channels, out_channels, order, norm, activation: as in :class:`SPP`.
        kernel: side of the window that is pooled again and again, odd, at least 3.
        repeats: how often, at least 1.

    Raises:
        ValueError: an even or too small kernel, no repeats, or what :class:`SPP` refuses.
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
            raise ValueError(
                f"kernel: expected an odd side of at least 3; got {kernel}; next that is possible: {nearest}"
            )
        if repeats < 1:
            raise ValueError(f"repeats: expected at least 1; got {repeats}")
        kernels = [1 + (kernel - 1) * times for times in range(1, repeats + 1)]
        super().__init__(in_channels, out_channels, kernels, order=order, norm=norm, activation=activation)
