"""Arithmetic of atrous convolutions: which rates suit a map, how many taps it leaves of them."""

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.ops.sliding_max import in_graph

# Below this mean share of live taps a branch is hardly more than a 1x1 convolution, whose share is 1/9.
LEAST_LIVE = 0.2
_FITTED_LIVE = 0.5


class LiveTaps(NamedTuple):
    """What a map leaves of a 3x3 kernel.

    Attributes:
        rate: spacing of the taps in cells.
        share: mean share of the nine taps that lie on the map and not in the padding around it; 1/9 is a 1x1
            convolution.
        full: share of the cells around which all nine lie on the map.
    """

    rate: int
    share: float
    full: float

    def __str__(self) -> str:
        """One line for people."""
        return f"rate {self.rate}: {self.share:.1%} of the taps are live ({self.full:.1%} of the cells have all nine)"


def parse_rates(rates: Sequence[int]) -> tuple[int, ...]:
    """Rates as integers.

    Raises:
        ValueError: none, or one that is no whole number of at least 1.
    """
    if not isinstance(rates, Sequence) or not rates or not all(type(rate) is int and rate >= 1 for rate in rates):
        raise ValueError(f"rates: expected one or more whole numbers of at least 1, such as (6, 12, 18); got {rates}")
    return tuple(rates)


def live_taps(rate: int, size: Sequence[int]) -> LiveTaps:
    """Count the taps of a 3x3 kernel that fall on a map of (rows, columns) cells, padded so that it keeps its size."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: expected (rows, columns) of at least 1 cell; got {tuple(size)}")
    share = full = 1.0
    for cells in size:
        both = max(cells - rate, 0) / cells  # share of the cells that see the tap on one side
        share *= (1 + 2 * both) / 3
        full *= max(cells - 2 * rate, 0) / cells
    return LiveTaps(rate, share, full)


def auto_rates(
    output_stride: int, map_size: Sequence[int] | None = None, form: Literal["v3", "v2"] = "v3"
) -> tuple[int, ...]:
    """The papers' rates, at a map's size made smaller until they fit.

    At output stride 16 they are 6, 12, 18 for ``v3`` (DeepLab v3, section 3.3) and 3, 6, 9, 12 for ``v2``, at 8 twice
    that (DeepLab v2, ASPP-L), and so on in proportion.

    Args:
        output_stride: image pixels from one cell to the next, at least 1.
        map_size: (rows, columns); the greatest rate is then the greatest, up to the papers', that leaves at least
            half of its taps on such a map, and the others are in proportion.
        form: whose rates.
    """
    if output_stride < 1:
        raise ValueError(f"output_stride: expected at least 1; got {output_stride}")
    count, step = (3, 96) if form == "v3" else (4, 48)
    greatest = max(count, round(count * step / output_stride))
    if map_size is not None:
        while greatest > count and live_taps(greatest, map_size).share < _FITTED_LIVE:
            greatest -= 1
    return tuple(round(greatest * part / count) for part in range(1, count + 1))


def warn_of_dead_taps(rates: Sequence[int], size: Sequence[int]) -> None:
    """Warn where a map of (rows, columns) cells leaves less than :data:`LEAST_LIVE` of a branch's taps."""
    dead = [str(taps) for taps in (live_taps(rate, size) for rate in rates) if taps.share < LEAST_LIVE]
    if dead:
        fitting = auto_rates(1, size)
        smaller = f"smaller rates, such as {fitting}, " if max(fitting) < max(rates) else ""
        warnings.warn(
            f"ASPP: on a map of {size[0]} x {size[1]} cells, {', '.join(dead)}: hardly more than a 1x1 convolution."
            f" Take {smaller}larger images or a smaller output stride",
            stacklevel=3,
        )


def is_plain(conv: nn.Module) -> bool:
    """Whether a convolution is torch's own and has no hooks, so that its weight may be used without calling it."""
    hooks = conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks
    return type(conv) is nn.Conv2d and not hooks


def atrous_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution itself, without the rows and columns of taps that cannot lie on the map.

    A 3x3 kernel whose rate is not below the map's sides is a 1x1 convolution, and costs a ninth.

    Args:
        conv: stride 1, padded by its rate if its side is 3.
        x: (N, C, H, W).
    """
    rate = conv.dilation[0]
    dead = rate >= x.shape[2], rate >= x.shape[3]
    # A graph is for all sizes, so it has all taps.
    if in_graph() or conv.kernel_size != (3, 3) or not is_plain(conv) or not any(dead):
        out: Tensor = conv(x)
        return out
    rows, columns = (slice(1, 2) if none else slice(None) for none in dead)
    padding = (0 if dead[0] else rate, 0 if dead[1] else rate)
    return F.conv2d(x, conv.weight[:, :, rows, columns], conv.bias, 1, padding, conv.dilation, conv.groups)
