"""The SPP-net classifier, which predicts each image at its own size."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

from sppnet.backbones.backbone import create_backbone
from sppnet.backbones.weights import embedded_weights
from sppnet.classify.network import ClassifierConfig, ClassifierNetwork
from sppnet.classify.predict import TOP, ClassificationResult, predict_images
from sppnet.classify.trained_sides import count_outside, outside_warning
from sppnet.data.images import ImageSource, list_sources
from sppnet.data.resize import Resize
from sppnet.inference.results import Failure, OnError

Images = ImageSource | Iterable[ImageSource]
_EMBEDDED_LENGTH = 21.0  # of the pooled vectors of the embedded classifier


class Classifier(ClassifierNetwork):
    """A classifier for images of any size (SPP-net, section 3)."""

    @overload
    def predict(
        self,
        images: Images,
        *,
        resize: Resize | str | None = None,
        views: str = "full",
        unknown: bool = False,
        top: int = TOP,
    ) -> list[ClassificationResult]: ...

    @overload
    def predict(
        self,
        images: Images,
        *,
        resize: Resize | str | None = None,
        views: str = "full",
        on_error: OnError,
        unknown: bool = False,
        top: int = TOP,
    ) -> list[ClassificationResult | Failure]: ...

    def predict(
        self,
        images: Images,
        *,
        resize: Resize | str | None = None,
        views: str = "full",
        on_error: OnError = "raise",
        unknown: bool = False,
        top: int = TOP,
    ) -> list[Any]:
        """Classify one or more images, each at its own size.

        Args:
            images: one image or several, see :func:`sppnet.data.images.load_image`.
            resize: resize policy; None for the model's default.
            views: ``full``, or the paper's ``10``, ``18``, ``96`` or ``96+2``, see
                :func:`sppnet.classify.views.view_probabilities`.
            on_error: ``raise`` the error of the first image that cannot be used, or ``skip`` such images, which yields
                a `Failure` in their place.
            unknown: whether to replace the label by ``unknown`` where its probability is below `config.threshold`.
            top: largest number of classes in a result.

        Returns:
            One result per image, in order. Results do not depend on the other images, except for rounding
            differences in convolutions of larger batches when images have the same size.

        Raises:
            sppnet.ImageError: an image cannot be used, and `on_error` is ``raise``.

        Warns:
            UserWarning: images were classified at a shorter side well outside `config.trained_sides`; at most once per
                call.
        """
        options: dict[str, Any] = {
            "resize": resize,
            "views": views,
            "on_error": on_error,
            "unknown": unknown,
            "top": top,
        }
        results = list(predict_images(self, list_sources(images), **options))
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

    Its global average pooling is a pyramid with the single level 1. The mean of a map that is larger than those of the
    training crops averages more background, and is shorter: on 125 ImageNet photographs, the mean length is 14.7 for
    crops of 224 pixels and 8.2 at native size, which lowers all probabilities. Vectors are therefore scaled to a
    common length, 14.7 divided by a temperature of 0.7. This corrects the confidence, not the ranking: at native sizes
    far above 224 pixels, the network remains less accurate than with the default ``shorter-side:256``.
    """
    from torchvision.models import EfficientNet_B0_Weights  # for the class names; takes seconds to import

    backbone = create_backbone()
    classes = tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])
    sides = (backbone.side, round(backbone.side * 8 / 7))
    config = ClassifierConfig(
        classes, levels=(1,), reduce="avg", resize=f"shorter-side:{sides[1]}", trained_sides=sides
    )
    model = Classifier(config, backbone)
    state = embedded_weights(backbone.network.blocks)  # type: ignore[arg-type]
    # The linear head scales vectors to unit mean square, which is a length of sqrt(channels).
    scale = _EMBEDDED_LENGTH / backbone.channels**0.5
    model.head.load_state_dict({"fc.weight": state["classifier.weight"] * scale, "fc.bias": state["classifier.bias"]})
    return model.eval()
