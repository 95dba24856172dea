"""The network of a classifier: backbone, spatial pyramid and head."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.backbones.backbone import Backbone
from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.backbones.paper import paper_head
from sppnet.data.resize import Resize
from sppnet.errors import check_choice, check_classes
from sppnet.layers.pyramid import SpatialPyramidPool
from sppnet.ops.levels import Level, Reduce, Rule
from sppnet.ops.pyramid import Sizes

Head = Literal["linear", "fc", "plain"]


@dataclass(frozen=True)
class ClassifierConfig:
    """Configuration of a classifier: everything needed to rebuild it, except the weights.

    Attributes:
        classes: class names, in logit order.
        backbone: name of the backbone, see :func:`sppnet.backbones.backbone.create_backbone`.
        stage: index of the backbone's feature map; None for the last.
        levels: pyramid levels.
        reduce: ``max`` or ``avg``.
        rule: rule that divides feature maps into bins.
        head: ``linear``: one linear layer on the vector scaled to unit mean square; ``plain``: one linear layer on
            the unscaled vector; ``fc``: the paper's fc6, fc7 and fc8 with dropout.
        resize: default resize policy.
        max_pixels: maximum number of pixels after resizing.
        trained_sides: (smallest, largest) shorter side of the network's training images in pixels, see
            :func:`sppnet.classify.trained_sides.trained_sides`; None if unknown.
        threshold: probability below which an image is reported as unknown, if that is asked for; None without any.
    """

    task: ClassVar[str] = "classify"

    classes: tuple[str, ...]
    backbone: str = EMBEDDED_BACKBONE
    stage: int | None = None
    levels: tuple[Level, ...] = (3, 2, 1)
    reduce: Reduce = "max"
    rule: Rule = "adaptive"
    head: Head = "linear"
    resize: str = "native"
    max_pixels: int = 1_000_000
    trained_sides: tuple[int, int] | None = None
    threshold: float | None = None


class ClassifierNetwork(nn.Module):
    """Network that maps images of any size to one logit per class (SPP-net, section 3)."""

    def __init__(self, config: ClassifierConfig, backbone: Backbone) -> None:
        super().__init__()
        check_choice("head", config.head, get_args(Head))
        check_classes(config.classes)
        Resize.parse(config.resize, backbone.side, config.max_pixels)  # report an invalid policy early
        self.config = config
        self.backbone = backbone
        self.pool = SpatialPyramidPool(config.levels, config.reduce, config.rule)
        self.head = create_head(config.head, backbone.channels * self.pool.bins, len(config.classes))

    def forward(self, x: Float[Tensor, "n 3 h w"], sizes: Sizes | None = None) -> Float[Tensor, "n classes"]:
        """Compute the logits of a batch.

        Args:
            x: RGB images in [0, 1], normalized with `backbone.mean` and `backbone.std`.
            sizes: (height, width) of each image in pixels, for a padded batch.
        """
        logits: Tensor = self.head(self.vectors(x, sizes))
        return logits

    def vectors(self, x: Float[Tensor, "n 3 h w"], sizes: Sizes | None = None) -> Float[Tensor, "n d"]:
        """Compute the pyramid vectors of a batch, which are the input of the head."""
        features = self.backbone(x, sizes)
        vectors: Tensor = self.pool(features.data, features.sizes)
        return vectors

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and the input."""
        return next(self.parameters()).dtype

    @property
    def resize(self) -> Resize:
        """Default resize policy."""
        return Resize.parse(self.config.resize, self.backbone.side, self.config.max_pixels, self.backbone.multiple)


def create_head(kind: Head, in_features: int, num_classes: int) -> nn.Module:
    """Create a newly initialized head; `ClassifierConfig.head` describes the kinds."""
    if kind == "fc":
        return paper_head(in_features, num_classes)
    linear = nn.Linear(in_features, num_classes)
    if kind == "plain":
        return linear
    norm = nn.RMSNorm(in_features, eps=1e-6, elementwise_affine=False)
    return nn.Sequential(OrderedDict(norm=norm, fc=linear))
