"""Normalisation layers that train on whatever comes, and the blocks of convolution that use them."""

from collections.abc import Callable
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.errors import choose

Norm = Literal["safe", "batch", "group"]


class SafeBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that does not fail in training where a channel has one value alone (batch 1 on a 1 x 1 map).

    Such a batch has no variance, so it is normalised by the running statistics, which stay as they are. Everywhere
    else, and in evaluation, it is :class:`torch.nn.BatchNorm2d` with the same parameters and buffers.
    ``convert_sync_batchnorm`` makes torch's own synchronised norm of it.
    """

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalise each channel over batch and places."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        out: Tensor = super().forward(x)
        return out


def create_norm(norm: Norm, channels: int) -> nn.Module:
    """A normalisation of `channels` channels.

    Args:
        norm: ``safe``, see :class:`SafeBatchNorm2d`; ``batch``, torch's own, which refuses to train on one value a
            channel; ``group``, which does not look at the batch: up to 32 groups of equal size, of two channels or
            more where there are two.
        channels: at least 1.
    """
    choose("norm", norm, get_args(Norm))
    if norm == "group":
        most = min(32, max(1, channels // 2))
        return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)
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
    """Convolution without bias that keeps the size, normalisation, activation.

    Args:
        inside: channels that come.
        outside: channels that go.
        kernel: odd side of the kernel.
        norm: see :func:`create_norm`.
        rate: spacing of the kernel's taps in cells.
        separable: a depthwise convolution of that kernel and rate, then a pointwise one, with normalisation and
            activation after each (DeepLabV3+).
        activation: makes the activation.
    """
    around = rate * (kernel // 2)
    if not separable or kernel == 1:
        conv = nn.Conv2d(inside, outside, kernel, padding=around, dilation=rate, bias=False)
        return nn.Sequential(conv, create_norm(norm, outside), activation())
    depthwise = nn.Conv2d(inside, inside, kernel, padding=around, dilation=rate, groups=inside, bias=False)
    pointwise = nn.Conv2d(inside, outside, 1, bias=False)
    return nn.Sequential(
        depthwise, create_norm(norm, inside), activation(), pointwise, create_norm(norm, outside), activation()
    )
