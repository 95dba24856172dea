"""The network of a classifier: backbone, spatial pyramid and head."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.backbones.backbone import Backbone
from sppnet.backbones.paper import paper_head
from sppnet.backbones.weights import EMBEDDED_BACKBONE
from sppnet.data.resize import Resize
from sppnet.errors import choose
from sppnet.layers.pyramid import SpatialPyramidPool
from sppnet.ops.bins import Level, Rule
from sppnet.ops.pyramid import Sizes
from sppnet.ops.reference import Reduce

Head = Literal["linear", "fc", "plain"]


@dataclass(frozen=True)
class ClassifierConfig:
    """All that rebuilds a classifier, its weights apart.

    Attributes:
        classes: names, in the order of the logits.
        backbone: see :func:`sppnet.backbones.backbone.create_backbone`.
        stage: which feature map of the backbone; None for the last.
        levels: of the pyramid.
        reduce: ``max`` or ``avg``.
        rule: how maps are cut into bins.
        head: ``linear``: the vector scaled to unit mean square, one linear layer; ``plain``: one linear layer on
            the vector as it is; ``fc``: the paper's fc6, fc7, fc8 with dropout.
        resize: the size at which images are taken unless something else is asked for.
        max_pixels: bound of that size.
        trained_sides: least and greatest shorter side of the training images as the network saw them, in pixels, see
            :func:`sppnet.classify.trained_sides.trained_sides`; None where that is not known.
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


class ClassifierNetwork(nn.Module):
    """Backbone, spatial pyramid and head: images of any size to one logit per class (SPP-net, section 3)."""

    def __init__(self, config: ClassifierConfig, backbone: Backbone) -> None:
        super().__init__()
        choose("head", config.head, get_args(Head))
        if not config.classes or len(set(config.classes)) < len(config.classes):
            found = f"{len(config.classes)}, {len(set(config.classes))} of them different"
            raise ValueError(f"classes: expected one or more different names; got {found}")
        Resize.parse(config.resize, backbone.side, config.max_pixels)  # refuses a wrong one here, not at an image
        self.config = config
        self.backbone = backbone
        self.pool = SpatialPyramidPool(config.levels, config.reduce, config.rule)
        self.head = create_head(config.head, backbone.channels * self.pool.bins, len(config.classes))

    def forward(self, x: Float[Tensor, "n 3 h w"], sizes: Sizes | None = None) -> Float[Tensor, "n classes"]:
        """Logits of a normalised batch.

        Args:
            x: RGB in [0, 1], minus `backbone.mean`, over `backbone.std`.
            sizes: valid (height, width) in pixels of each image of a padded batch.
        """
        logits: Tensor = self.head(self.vectors(x, sizes))
        return logits

    def vectors(self, x: Float[Tensor, "n 3 h w"], sizes: Sizes | None = None) -> Float[Tensor, "n d"]:
        """Pyramid vectors of a normalised batch: what the head sees."""
        features = self.backbone(x, sizes)
        vectors: Tensor = self.pool(features.data, features.sizes)
        return vectors

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and of the images that they take."""
        return next(self.parameters()).dtype

    @property
    def resize(self) -> Resize:
        """The size at which images are taken by default."""
        return Resize.parse(self.config.resize, self.backbone.side, self.config.max_pixels)


def create_head(kind: Head, in_features: int, num_classes: int) -> nn.Module:
    """A head of `ClassifierConfig.head`'s kind, freshly initialised."""
    if kind == "fc":
        return paper_head(in_features, num_classes)
    linear = nn.Linear(in_features, num_classes)
    if kind == "plain":
        return linear
    norm = nn.RMSNorm(in_features, eps=1e-6, elementwise_affine=False)
    return nn.Sequential(OrderedDict(norm=norm, fc=linear))
