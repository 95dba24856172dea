"""Atrous convolutions: choice of rates, and kernel taps that fall into the padding."""

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.ops.sliding_max import in_graph

# Mean share of live taps below which a branch is little more than a 1x1 convolution, whose share is 1/9.
MIN_LIVE_SHARE = 0.2
_MIN_FITTED_SHARE = 0.5


class LiveTaps(NamedTuple):
    """Live taps of a 3x3 kernel: those on the map, not in the padding around it.

    Attributes:
        rate: dilation rate in cells.
        share: mean share of live taps, at least 1/9, which is a 1x1 convolution.
        full: share of the cells for which all nine taps are live.
    """

    rate: int
    share: float
    full: float

    def __str__(self) -> str:
        """Format as one readable line."""
        return f"rate {self.rate}: {self.share:.1%} of the taps are live ({self.full:.1%} of the cells have all nine)"


def parse_rates(rates: Sequence[int]) -> tuple[int, ...]:
    """Validate rates.

    Raises:
        ValueError: no rates, or a rate that is not an integer >= 1.
    """
    if not isinstance(rates, Sequence) or not rates or not all(type(rate) is int and rate >= 1 for rate in rates):
        raise ValueError(f"rates: expected one or more integers >= 1, such as (6, 12, 18), got {rates}")
    return tuple(rates)


def live_taps(rate: int, size: Sequence[int]) -> LiveTaps:
    """Count the live taps of a 3x3 kernel on a map of (rows, columns) cells, padded by the rate."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: expected (rows, columns), each >= 1, got {tuple(size)}")
    share = full = 1.0
    for cells in size:
        one_side = max(cells - rate, 0) / cells  # share of the cells whose tap on one given side is live
        share *= (1 + 2 * one_side) / 3
        full *= max(cells - 2 * rate, 0) / cells
    return LiveTaps(rate, share, full)


def auto_rates(
    output_stride: int, map_size: Sequence[int] | None = None, form: Literal["v3", "v2"] = "v3"
) -> tuple[int, ...]:
    """Return the rates of the DeepLab papers, optionally reduced to fit a map size.

    At output stride 16 these are 6, 12, 18 for ``v3`` (DeepLab v3, section 3.3) and 3, 6, 9, 12 for ``v2``; at stride 8
    they double (DeepLab v2, ASPP-L), and so on in proportion.

    Args:
        output_stride: image pixels per cell, >= 1.
        map_size: (rows, columns) of the feature map. The largest rate is reduced until at least half of its taps are
            live, but not below the number of rates; the others shrink in proportion. None keeps the papers' rates.
        form: ``v3`` or ``v2``, the DeepLab version.
    """
    if output_stride < 1:
        raise ValueError(f"output_stride: expected at least 1, got {output_stride}")
    count, step = (3, 96) if form == "v3" else (4, 48)
    largest = max(count, round(count * step / output_stride))
    if map_size is not None:
        while largest > count and live_taps(largest, map_size).share < _MIN_FITTED_SHARE:
            largest -= 1
    return tuple(round(largest * part / count) for part in range(1, count + 1))


def warn_of_dead_taps(rates: Sequence[int], size: Sequence[int]) -> None:
    """Warn of rates whose share of live taps on a map of (rows, columns) cells is below :data:`MIN_LIVE_SHARE`."""
    dead = [str(taps) for taps in (live_taps(rate, size) for rate in rates) if taps.share < MIN_LIVE_SHARE]
    if dead:
        fitting = auto_rates(1, size)
        smaller = f"smaller rates, such as {fitting}, " if max(fitting) < max(rates) else ""
        warnings.warn(
            f"ASPP: on a map of {size[0]} x {size[1]} cells, {', '.join(dead)}; each is almost a 1x1 convolution."
            f" Use {smaller}larger images or a smaller output stride",
            stacklevel=3,
        )


def is_plain(conv: nn.Module) -> bool:
    """Return whether a module is an :class:`torch.nn.Conv2d` without hooks, whose weights may be used directly."""
    hooks = conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks
    return type(conv) is nn.Conv2d and not hooks


def atrous_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution without the kernel rows and columns that always fall into the padding.

    If the rate is at least as large as both sides of the map, a 3x3 kernel becomes 1x1, at a ninth of the cost.

    Args:
        conv: convolution of stride 1; a 3x3 kernel has padding equal to its rate.
        x: feature map (N, C, H, W).
    """
    rate = conv.dilation[0]
    dead = rate >= x.shape[2], rate >= x.shape[3]
    # A traced graph must work at every size, so it keeps all taps.
    if in_graph() or conv.kernel_size != (3, 3) or not is_plain(conv) or not any(dead):
        out: Tensor = conv(x)
        return out
    rows, columns = (slice(1, 2) if only_center else slice(None) for only_center in dead)
    padding = (0 if dead[0] else rate, 0 if dead[1] else rate)
    return F.conv2d(x, conv.weight[:, :, rows, columns], conv.bias, 1, padding, conv.dilation, conv.groups)
