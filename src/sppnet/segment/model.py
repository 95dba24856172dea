"""The segmenter, which gives each pixel of images of any size its class."""

from collections.abc import Iterable

from sppnet.backbones.backbone import create_backbone
from sppnet.data.images import ImageSource, list_sources
from sppnet.inference.results import Failure, OnError
from sppnet.segment.network import SegmenterConfig, SegmenterNetwork
from sppnet.segment.options import View
from sppnet.segment.predict import SegmentationResult, predict_images


class Segmenter(SegmenterNetwork):
    """A segmenter for images of any size (DeepLab v2, v3, v3+ and PSPNet)."""

    def predict(
        self, images: ImageSource | Iterable[ImageSource], *, view: View | None = None, on_error: OnError = "raise"
    ) -> list[SegmentationResult | Failure]:
        """Segment one or more images, each at its own size.

        Args:
            images: one image or several: paths, bytes of files, Pillow images, uint8 arrays or tensors, see
                :func:`sppnet.data.images.load_image`.
            view: scales, mirror images, memory limit and tiles; None for each image in one pass.
            on_error: ``raise``, or ``skip`` to return a failure in the place of an image that cannot be used.

        Returns:
            One result per image, in order; they do not depend on the other images.

        Raises:
            sppnet.ImageError: an image cannot be read, or needs more memory than the limit of the view.
        """
        return list(predict_images(self, list_sources(images), view, on_error))


def create_segmenter(config: SegmenterConfig, weights: str | None = "auto") -> Segmenter:
    """Create a segmenter.

    Args:
        config: configuration of the segmenter.
        weights: pretrained weights of the backbone, see :func:`sppnet.backbones.backbone.create_backbone`.
    """
    if config.output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride: expected 8, 16 or 32, got {config.output_stride}")
    return Segmenter(config, create_backbone(config.backbone, -1, weights, output_stride=config.output_stride))
