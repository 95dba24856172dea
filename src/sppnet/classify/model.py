"""The SPP-net classifier, which predicts each image at its own size."""

import os
import warnings
from collections.abc import Iterable

import numpy as np
from PIL import Image

from sppnet.backbones.backbone import create_backbone
from sppnet.backbones.weights import embedded_weights
from sppnet.classify.network import ClassifierConfig, ClassifierNetwork
from sppnet.classify.predict import Prediction, predict_images
from sppnet.classify.trained_sides import count_outside, outside_warning
from sppnet.data.images import ImageSource
from sppnet.data.resize import Resize
from sppnet.inference.results import Failure


class Classifier(ClassifierNetwork):
    """A classifier for images of any size (SPP-net, section 3)."""

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        resize: Resize | str | None = None,
        views: str = "full",
    ) -> list[Prediction]:
        """Classify one or more images, each at its own size.

        Args:
            images: one image or several: paths, bytes of files, Pillow images or uint8 arrays.
            resize: resize policy; None for the model's default.
            views: ``full``, or the paper's ``10``, ``18``, ``96`` or ``96+2``, see
                :func:`sppnet.classify.views.view_probabilities`.

        Returns:
            One prediction per image, in order. Predictions do not depend on the other images, except for rounding
            differences in convolutions of larger batches when images have the same size.

        Raises:
            sppnet.ImageError: an image cannot be read; the first such error is raised.

        Warns:
            UserWarning: images were classified at a shorter side outside `config.trained_sides`; at most once per call.
        """
        single = isinstance(images, str | bytes | os.PathLike | Image.Image | np.ndarray)
        results = []
        for result in predict_images(self, [images] if single else images, resize=resize, views=views):  # type: ignore[list-item,arg-type]
            if isinstance(result, Failure):
                raise result.error
            results.append(result)
        if text := outside_warning(
            self.config, count_outside(self.config, results, views), len(results), 'resize="{}"'
        ):
            warnings.warn(text, UserWarning, stacklevel=2)
        return results


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
