"""The convolutional networks of the SPP-net paper: ZF-5, Convnet*-5, Overfeat-5 and Overfeat-7.

Each builder returns the convolutional layers as a `Sequential` with named children. They map images (N, 3, H, W)
of any size above the network's minimum to feature maps (N, C, H', W'). No weight depends on the image size, so one
`state_dict` works for every size (SPP-net, section 2.3). A pyramid pooling layer connects them to `paper_head`.

Common to all four networks:

* Every convolution is dense (no groups) and followed by ReLU.
* Max pools round their output size up (`ceil_mode`). ZF-5 needs it for the published sides: 224 pixels give
  13 cells, where rounding down gives 12.
* Weights are drawn from a normal distribution with standard deviation 0.01, using torch's default generator. Biases
  start at 0 in conv1 and conv3 and at 1 in all other layers.

Normalization and initialization are those of the authors' released ZF-5. They are not published for the other three
networks and are assumed to be the same.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PAPER_NETS", "WithinChannelLRN", "convnet5", "overfeat5", "overfeat7", "paper_head", "zf5"]


class WithinChannelLRN(nn.Module):
    """Local response normalization over a 3x3 neighborhood within each channel (released ZF-5 of SPP-net).

    `y = x * (1 + alpha * mean(x^2)) ** -beta`, with the mean over the 3x3 window centered on each cell. The map is
    padded with zeros and the divisor is always 9. `torch.nn.LocalResponseNorm` is a different operator: its window
    runs across channels.

    Args:
        alpha: weight of the mean square, at least 0.
        beta: exponent, at least 0.
    """

    def __init__(self, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
        self.alpha = alpha
        self.beta = beta

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalize every cell by its 3x3 neighborhood; the shape is kept."""
        # Scale before squaring: x * x alone overflows float16 for |x| >= 256.
        scaled_square = (x * math.sqrt(self.alpha)).square()
        return x * (1 + F.avg_pool2d(scaled_square, 3, stride=1, padding=1)) ** -self.beta

    def extra_repr(self) -> str:
        """Return the constants for `print(module)`."""
        return f"alpha={self.alpha}, beta={self.beta}"


def zf5() -> nn.Sequential:
    """ZF-5, 256 channels, stride 16: the network of the paper's detector (SPP-net, section 3.1.1, Table 1).

    Map sides: 180 pixels give 10 cells, 192 give 11, 208 give 12, 224 give 13, 688 give 42, 1200 give 74. The
    minimum side is 31 pixels. The receptive field is 139 pixels wide; that of the first cell is centered on pixel 20
    (0-based), not counting the normalization windows, as usual.

    Padding, filters and initialization follow the authors' released model definition. At 224 pixels conv2 has 26
    cells, where Table 1 lists 27; the 55 cells after pool1 and the final 13 agree.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=_conv(3, 96, 7, stride=2, padding=1, bias=0.0),
            relu1=nn.ReLU(inplace=True),
            norm1=WithinChannelLRN(),
            pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
            conv2=_conv(96, 256, 5, stride=2, padding=0, bias=1.0),
            relu2=nn.ReLU(inplace=True),
            norm2=WithinChannelLRN(),
            pool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
            conv3=_conv(256, 384, 3, padding=1, bias=0.0),
            relu3=nn.ReLU(inplace=True),
            conv4=_conv(384, 384, 3, padding=1, bias=1.0),
            relu4=nn.ReLU(inplace=True),
            conv5=_conv(384, 256, 3, padding=1, bias=1.0),
            relu5=nn.ReLU(inplace=True),
        )
    )


def convnet5() -> nn.Sequential:
    """Convnet*-5, 256 channels, stride 16: AlexNet with its first two pools moved one convolution later.

    Published (SPP-net, section 3.1.1, Table 1): filters, strides, the positions of the pools, and the map sides at
    224 pixels: 55 after conv1, 27 after pool2, 13 after pool3.

    Inferred: padding 2, 2, 1, 1, 1. With pools that round up, these sides determine the padding of conv2 and conv3
    and allow 2 or 3 for conv1; 2 is the usual value for AlexNet at 224 pixels. With either, 180 pixels give 11
    cells. The receptive field is 131 pixels wide; that of the first cell is centered on pixel 15 (0-based), without
    the normalization windows.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=_conv(3, 96, 11, stride=4, padding=2, bias=0.0),
            relu1=nn.ReLU(inplace=True),
            norm1=WithinChannelLRN(),
            conv2=_conv(96, 256, 5, padding=2, bias=1.0),
            relu2=nn.ReLU(inplace=True),
            norm2=WithinChannelLRN(),
            pool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
            conv3=_conv(256, 384, 3, padding=1, bias=0.0),
            relu3=nn.ReLU(inplace=True),
            pool3=nn.MaxPool2d(3, stride=2, ceil_mode=True),
            conv4=_conv(384, 384, 3, padding=1, bias=1.0),
            relu4=nn.ReLU(inplace=True),
            conv5=_conv(384, 256, 3, padding=1, bias=1.0),
            relu5=nn.ReLU(inplace=True),
        )
    )


def overfeat5() -> nn.Sequential:
    """Overfeat-5, 512 channels, stride 12 (SPP-net, section 3.1.1, Table 1).

    Published: filters, strides, pools, the position of the normalization (after pool1), 18 cells at 224 pixels
    and the total stride of 12.

    Inferred: padding 0, 1, 1, 1, 1. It gives 18 cells at 224 pixels and 14 at 180, and centers the first receptive
    field on pixel 14 (0-based), the offset used by a port of the authors' detection code. Table 1 lists 36 cells
    after pool1 at 224 pixels, but a pool that rounds up has at least 37 with any symmetric padding. The receptive
    field is 113 pixels wide.
    """
    return _overfeat(5)


def overfeat7() -> nn.Sequential:
    """Overfeat-7, 512 channels, stride 12: Overfeat-5 with two more 3x3 convolutions like its last.

    `overfeat5` lists published and inferred values. conv6 and conv7 have padding 1 and biases that start at 1. The
    receptive field is 161 pixels wide.
    """
    return _overfeat(7)


PAPER_NETS: dict[str, Callable[[], nn.Sequential]] = {
    "zf5": zf5,
    "convnet5": convnet5,
    "overfeat5": overfeat5,
    "overfeat7": overfeat7,
}
"""Builders of the paper's convolutional networks by name."""


def paper_head(in_features: int, num_classes: int) -> nn.Sequential:
    """Build the fully connected layers fc6, fc7 (4096 units, ReLU, dropout 0.5) and fc8 (SPP-net, section 3.1.1).

    They map flattened pyramids (N, in_features) to logits (N, num_classes). As in the authors' released ZF-5, weights
    are drawn from a normal distribution with standard deviation 0.01 and all biases start at 1.

    Args:
        in_features: length of the pyramid vector, channels times bins, such as 256 * 50; at least 1.
        num_classes: number of logits, at least 1.

    Raises:
        ValueError: an argument is below 1.
    """
    for name, value in (("in_features", in_features), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    return nn.Sequential(
        OrderedDict(
            fc6=_linear(in_features, 4096, bias=1.0),
            relu6=nn.ReLU(inplace=True),
            drop6=nn.Dropout(0.5),
            fc7=_linear(4096, 4096, bias=1.0),
            relu7=nn.ReLU(inplace=True),
            drop7=nn.Dropout(0.5),
            fc8=_linear(4096, num_classes, bias=1.0),
        )
    )


def _overfeat(num_convs: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_conv(3, 96, 7, stride=2, padding=0, bias=0.0),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, stride=3, ceil_mode=True),
        norm1=WithinChannelLRN(),
        conv2=_conv(96, 256, 5, padding=1, bias=1.0),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(2, stride=2, ceil_mode=True),
        conv3=_conv(256, 512, 3, padding=1, bias=0.0),
        relu3=nn.ReLU(inplace=True),
    )
    for i in range(4, num_convs + 1):
        layers[f"conv{i}"] = _conv(512, 512, 3, padding=1, bias=1.0)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int, bias: float
) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
    _init_gaussian(conv, bias)
    return conv


def _linear(in_features: int, out_features: int, *, bias: float) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    _init_gaussian(linear, bias)
    return linear


def _init_gaussian(layer: nn.Conv2d | nn.Linear, bias: float) -> None:
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)
