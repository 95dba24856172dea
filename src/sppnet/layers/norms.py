"""Normalization layers that train at any batch size, and convolution blocks that use them."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import get_args

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.errors import check_choice
from sppnet.layers.names import Norm

# Whether batch norm uses statistics of all processes, of which each may have a single value.
shares_statistics: ContextVar[bool] = ContextVar("shares_statistics", default=False)


class SafeBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that also trains on a single value per channel (batch size 1, 1 x 1 map).

    Such a batch has no variance, so it is normalized by the running statistics, which are not updated. Otherwise it is
    :class:`torch.nn.BatchNorm2d`, with the same parameters and buffers. ``convert_sync_batchnorm`` replaces it by
    :class:`torch.nn.SyncBatchNorm`.
    """

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalize each channel over the batch and all cells."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1 and not shares_statistics.get():
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        out: Tensor = super().forward(x)
        return out


def create_norm(norm: Norm, channels: int) -> nn.Module:
    """Create a normalization layer.

    Args:
        norm: ``safe`` for :class:`SafeBatchNorm2d`; ``batch`` for :class:`torch.nn.BatchNorm2d`, which cannot train on
            a single value per channel; ``group`` for group norm, which is independent of the batch, with up to 32
            groups of equal size and of at least two channels if possible.
        channels: number of channels, >= 1.
    """
    check_choice("norm", norm, get_args(Norm))
    if norm == "group":
        limit = min(32, max(1, channels // 2))
        return nn.GroupNorm(next(groups for groups in range(limit, 0, -1) if channels % groups == 0), channels)
    return SafeBatchNorm2d(channels) if norm == "safe" else nn.BatchNorm2d(channels)


def conv_block(
    inside: int,
    outside: int,
    kernel: int = 1,
    norm: Norm = "safe",
    *,
    rate: int = 1,
    separable: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Create a convolution without bias and with "same" padding, followed by normalization and activation.

    Args:
        inside: number of input channels.
        outside: number of output channels.
        kernel: side of the kernel, odd.
        norm: kind of normalization, see :func:`create_norm`.
        rate: dilation rate in cells.
        separable: use a depthwise convolution of this kernel and rate, then a pointwise one, with normalization and
            activation after each (DeepLab v3+).
        activation: factory of the activation module.
    """
    padding = rate * (kernel // 2)
    if not separable or kernel == 1:
        conv = nn.Conv2d(inside, outside, kernel, padding=padding, dilation=rate, bias=False)
        return nn.Sequential(conv, create_norm(norm, outside), activation())
    depthwise = nn.Conv2d(inside, inside, kernel, padding=padding, dilation=rate, groups=inside, bias=False)
    pointwise = nn.Conv2d(inside, outside, 1, bias=False)
    return nn.Sequential(
        depthwise, create_norm(norm, inside), activation(), pointwise, create_norm(norm, outside), activation()
    )
