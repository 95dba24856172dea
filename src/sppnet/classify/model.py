"""The SPP-net classifier: backbone, pyramid, head; every image at its own size."""

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from sppnet.backbones import Backbone, create_backbone
from sppnet.bins import Level, Rule, choose
from sppnet.data.images import ImageSource
from sppnet.data.resize import Resize
from sppnet.layers import SpatialPyramidPool
from sppnet.nets import paper_head
from sppnet.ops.plain import Reduce
from sppnet.ops.pyramid import Sizes
from sppnet.weights import EMBEDDED_BACKBONE, embedded_weights

Head = Literal["linear", "fc", "plain"]


@dataclass(frozen=True)
class ClassifierConfig:
    """All that rebuilds a classifier, its weights apart.

    Attributes:
        classes: names, in the order of the logits.
        backbone: see :func:`sppnet.backbones.create_backbone`.
        stage: which feature map of the backbone; None for the last.
        levels: of the pyramid.
        reduce: ``max`` or ``avg``.
        rule: how maps are cut into bins.
        head: ``linear``: the vector scaled to unit mean square, one linear layer; ``plain``: one linear layer on
            the vector as it is; ``fc``: the paper's fc6, fc7, fc8 with dropout.
        resize: the size at which images are taken unless something else is asked for.
        max_pixels: bound of that size.
        trained_sides: least and greatest shorter side of the training images as the network saw them, in pixels, see
            :func:`sppnet.trained_sides.trained_sides`; None where that is not known.
    """

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


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        source: the path, or a name for an image that has none.
        label: the likeliest class.
        score: its probability.
        top: up to five classes with their probabilities, likeliest first.
        size: (height, width) of the image, EXIF orientation applied.
        network_size: (height, width) at which the network saw it.
    """

    source: str
    label: str
    score: float
    top: tuple[tuple[str, float], ...]
    size: tuple[int, int]
    network_size: tuple[int, int]


class Classifier(nn.Module):
    """Images of any size in, one logit a class out (SPP-net, section 3)."""

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

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        resize: Resize | str | None = None,
        views: str = "full",
    ) -> list[Prediction]:
        """Classify images or files, each at its own size, whatever the sizes of the others.

        Args:
            images: one or several: paths, bytes of files, Pillow images, uint8 arrays.
            resize: None for the model's own policy.
            views: ``full``, or the paper's ``10``, ``18``, ``96``, ``96+2``, see
                :func:`sppnet.views.view_probabilities`.

        Returns:
            One prediction an image, in order. An image's answer does not depend on what else is given, but for the
            rounding of a larger convolution where images share a size.

        Raises:
            sppnet.ImageError: the first image that cannot be read.

        Warns:
            UserWarning: once, where images were seen at a shorter side outside `config.trained_sides`.
        """
        from sppnet.predict import Failure, predict_images
        from sppnet.trained_sides import count_outside, outside_text

        single = isinstance(images, str | bytes | os.PathLike | Image.Image | np.ndarray)
        results = []
        for result in predict_images(self, [images] if single else images, resize=resize, views=views):  # type: ignore[list-item,arg-type]
            if isinstance(result, Failure):
                raise result.error
            results.append(result)
        if text := outside_text(self.config, count_outside(self.config, results, views), len(results), 'resize="{}"'):
            warnings.warn(text, UserWarning, stacklevel=2)
        return results


def create_head(kind: Head, in_features: int, num_classes: int) -> nn.Module:
    """A head of `ClassifierConfig.head`'s kind, freshly initialised."""
    if kind == "fc":
        return paper_head(in_features, num_classes)
    linear = nn.Linear(in_features, num_classes)
    if kind == "plain":
        return linear
    norm = nn.RMSNorm(in_features, eps=1e-6, elementwise_affine=False)
    return nn.Sequential(OrderedDict(norm=norm, fc=linear))


def imagenet_classifier() -> Classifier:
    """The embedded network with its own ImageNet head, for images of any size; nothing is trained or downloaded.

    Its global average is the pyramid of the one level 1. It was trained on crops of 224 pixels, and is less sure of
    photographs much larger than that: `shorter-side:256` takes them nearer to what it knows.
    """
    from torchvision.models import EfficientNet_B0_Weights  # seconds to import, and it has the classes' names

    backbone = create_backbone()
    classes = tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])
    sides = (backbone.side, round(backbone.side * 8 / 7))
    config = ClassifierConfig(classes, levels=(1,), reduce="avg", head="plain", trained_sides=sides)
    model = Classifier(config, backbone)
    state = embedded_weights(backbone.network.blocks)  # type: ignore[arg-type]
    model.head.load_state_dict({"weight": state["classifier.weight"], "bias": state["classifier.bias"]})
    return model.eval()
