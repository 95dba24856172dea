"""The SPP-net classifier, which predicts each image at its own size."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

from sppnet.backbones.backbone import create_backbone
from sppnet.backbones.weights import embedded_weights
from sppnet.classify.network import ClassifierConfig, ClassifierNetwork
from sppnet.classify.predict import ClassificationResult, predict_images
from sppnet.classify.trained_sides import count_outside, outside_warning
from sppnet.data.images import ImageSource, list_sources
from sppnet.data.resize import Resize
from sppnet.inference.results import Failure, OnError

Images = ImageSource | Iterable[ImageSource]


class Classifier(ClassifierNetwork):
    """A classifier for images of any size (SPP-net, section 3)."""

    @overload
    def predict(
        self, images: Images, *, resize: Resize | str | None = None, views: str = "full"
    ) -> list[ClassificationResult]: ...

    @overload
    def predict(
        self, images: Images, *, resize: Resize | str | None = None, views: str = "full", on_error: OnError
    ) -> list[ClassificationResult | Failure]: ...

    def predict(
        self, images: Images, *, resize: Resize | str | None = None, views: str = "full", on_error: OnError = "raise"
    ) -> list[Any]:
        """Classify one or more images, each at its own size.

        Args:
            images: one image or several, see :func:`sppnet.data.images.load_image`.
            resize: resize policy; None for the model's default.
            views: ``full``, or the paper's ``10``, ``18``, ``96`` or ``96+2``, see
                :func:`sppnet.classify.views.view_probabilities`.
            on_error: ``raise`` the error of the first image that cannot be used, or ``skip`` such images, which yields
                a `Failure` in their place.

        Returns:
            One result per image, in order. Results do not depend on the other images, except for rounding
            differences in convolutions of larger batches when images have the same size.

        Raises:
            sppnet.ImageError: an image cannot be used, and `on_error` is ``raise``.

        Warns:
            UserWarning: images were classified at a shorter side well outside `config.trained_sides`; at most once per
                call.
        """
        results = list(predict_images(self, list_sources(images), resize=resize, views=views, on_error=on_error))
        outside = count_outside(self.config, results, views)
        if text := outside_warning(self.config, outside, len(results), 'resize="{}"'):
            warnings.warn(text, UserWarning, stacklevel=2)
        return results


def create_classifier(config: ClassifierConfig, weights: str | Path | None = "auto") -> Classifier:
    """Create a classifier with an untrained head.

    Args:
        config: configuration of the classifier.
        weights: weights of the backbone, see :func:`sppnet.backbones.backbone.create_backbone`.
    """
    return Classifier(config, create_backbone(config.backbone, config.stage, weights))


def imagenet_classifier() -> Classifier:
    """Create the ImageNet classifier from the embedded weights, without training or download.

    Its global average pooling is a pyramid with the single level 1. It was trained on crops of 224 pixels; on much
    larger photographs, ``resize="shorter-side:256"`` is closer to its training sizes.
    """
    from torchvision.models import EfficientNet_B0_Weights  # for the class names; takes seconds to import

    backbone = create_backbone()
    classes = tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])
    sides = (backbone.side, round(backbone.side * 8 / 7))
    config = ClassifierConfig(classes, levels=(1,), reduce="avg", head="plain", trained_sides=sides)
    model = Classifier(config, backbone)
    state = embedded_weights(backbone.network.blocks)  # type: ignore[arg-type]
    model.head.load_state_dict({"weight": state["classifier.weight"], "bias": state["classifier.bias"]})
    return model.eval()
