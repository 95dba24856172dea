"""The network of a classifier: backbone, spatial pyramid and head."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.backbones.backbone import Backbone, FeatureMap
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
        stages: indices of further, earlier feature maps. The pyramid vectors of all maps are scaled to equal length and
            concatenated, those of `stage` last.
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
    stages: tuple[int, ...] = ()


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
        self.stages: tuple[int | None, ...] = (*map(backbone.check_stage, config.stages), backbone.stage)
        if len(set(self.stages)) < len(self.stages):
            raise ValueError(
                f"stages: expected different maps before the last, got {config.stages}; omit the repeated ones"
            )
        self.head = create_head(config.head, self.vector_length, len(config.classes))

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
        return self.concatenate([self.pool(features.data, features.sizes) for features in self.maps(x, sizes)])

    def maps(self, x: Float[Tensor, "n 3 h w"], sizes: Sizes | None = None) -> list[FeatureMap]:
        """Compute the feature maps of all stages of a batch in one pass."""
        if len(self.stages) == 1:
            return [self.backbone(x, sizes)]  # with its forward hooks
        return self.backbone.maps(x, self.stages, sizes)

    def concatenate(self, vectors: Sequence[Float[Tensor, "n _"]]) -> Float[Tensor, "n d"]:
        """Concatenate the pyramid vectors of the stages; those of several stages are scaled to equal length first."""
        if len(vectors) == 1:
            return vectors[0]
        length = (self.vector_length / len(vectors)) ** 0.5  # the result has unit mean square
        return torch.cat([length * nn.functional.normalize(part, dim=1) for part in vectors], 1)

    @property
    def vector_length(self) -> int:
        """Length of the vectors, which are the input of the head."""
        return self.pool.bins * sum(self.backbone.stage_info(stage).channels for stage in self.stages)

    @property
    def vector_settings(self) -> dict[str, Any]:
        """Everything that the vectors of an image depend on, except its size and the weights, as JSON values."""
        config = self.config
        settings = {name: getattr(config, name) for name in ("backbone", "stage", "levels", "reduce", "rule")}
        return settings | ({"stages": config.stages} if config.stages else {})

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


def default_stages(backbone: Backbone) -> tuple[int, ...]:
    """Return the default of `ClassifierConfig.stages` for a frozen backbone: its last two maps, besides the last layer.

    The last of these maps is omitted if it is the output of the backbone. The result is empty for a backbone with a
    `stage`, or with one map only.
    """
    if backbone.stage is not None or not hasattr(backbone.network, "forward_intermediates"):
        return ()
    last = backbone.check_stage(-1)
    repeated = backbone.stage_info(last).channels == backbone.channels
    return tuple(range(max(last - 1, 0), last if repeated else last + 1))


def create_head(kind: Head, in_features: int, num_classes: int) -> nn.Module:
    """Create a newly initialized head; `ClassifierConfig.head` describes the kinds."""
    if kind == "fc":
        return paper_head(in_features, num_classes)
    linear = nn.Linear(in_features, num_classes)
    if kind == "plain":
        return linear
    norm = nn.RMSNorm(in_features, eps=1e-6, elementwise_affine=False)
    return nn.Sequential(OrderedDict(norm=norm, fc=linear))
