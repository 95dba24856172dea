"""The SPP-net classifier: backbone, pyramid, head; every image at its own size."""

import os
import warnings
from collections.abc import Iterable

import numpy as np
from PIL import Image

from sppnet.backbones.backbone import create_backbone
from sppnet.backbones.weights import embedded_weights
from sppnet.classify.network import ClassifierConfig, ClassifierNetwork
from sppnet.classify.predict import Prediction
from sppnet.data.images import ImageSource
from sppnet.data.resize import Resize


class Classifier(ClassifierNetwork):
    """A classifier for images of any size (SPP-net, section 3)."""

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
                :func:`sppnet.classify.views.view_probabilities`.

        Returns:
            One prediction an image, in order. An image's answer does not depend on what else is given, but for the
            rounding of a larger convolution where images share a size.

        Raises:
            sppnet.ImageError: the first image that cannot be read.

        Warns:
            UserWarning: once, where images were seen at a shorter side outside `config.trained_sides`.
        """
        from sppnet.classify.predict import predict_images
        from sppnet.classify.trained_sides import count_outside, outside_text
        from sppnet.inference.results import Failure

        single = isinstance(images, str | bytes | os.PathLike | Image.Image | np.ndarray)
        results = []
        for result in predict_images(self, [images] if single else images, resize=resize, views=views):  # type: ignore[list-item,arg-type]
            if isinstance(result, Failure):
                raise result.error
            results.append(result)
        if text := outside_text(self.config, count_outside(self.config, results, views), len(results), 'resize="{}"'):
            warnings.warn(text, UserWarning, stacklevel=2)
        return results


def imagenet_classifier() -> Classifier:
    """The embedded network with its own ImageNet head, for images of any size; nothing is trained or downloaded.

    Its global average is the pyramid of the one level 1. It was trained on crops of 224 pixels, and is less sure of
    photographs much larger than that: `shorter-side:256` takes them nearer to what it knows.
    """
    from torchvision.models import (
        EfficientNet_B0_Weights,  # seconds to import, and it has the classes' names
    )

    backbone = create_backbone()
    classes = tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])
    sides = (backbone.side, round(backbone.side * 8 / 7))
    config = ClassifierConfig(classes, levels=(1,), reduce="avg", head="plain", trained_sides=sides)
    model = Classifier(config, backbone)
    state = embedded_weights(backbone.network.blocks)  # type: ignore[arg-type]
    model.head.load_state_dict({"weight": state["classifier.weight"], "bias": state["classifier.bias"]})
    return model.eval()
