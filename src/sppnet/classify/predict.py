"""Classification of a stream of images of mixed sizes; unusable images yield failures in their place."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, get_args

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sppnet.backbones.backbone import Backbone
from sppnet.backbones.modes import evaluation_mode
from sppnet.classify.network import ClassifierNetwork
from sppnet.classify.views import Views, view_probabilities
from sppnet.data.images import ImageSource, load_image, source_name, to_tensor
from sppnet.data.resize import Resize
from sppnet.errors import ImageError, check_choice
from sppnet.inference.results import Failure, OnError, Result

T = TypeVar("T")

_CHUNK = 32
_PASS_PIXELS = 2_000_000  # per forward pass; the embedded network needs about 500 bytes per pixel
# At a larger ratio of sides, the largest scale of the 96 views would exceed 3 million pixels.
_MAX_VIEWS_ASPECT = 10


@dataclass(frozen=True, repr=False)
class ClassificationResult(Result):
    """Classification of one image.

    Attributes:
        label: most probable class.
        score: probability of `label`.
        top: up to five (class, probability) pairs, most probable first.
        network_size: (height, width) of the network's input.
    """

    label: str
    score: float
    top: tuple[tuple[str, float], ...]
    network_size: tuple[int, int]

    def _summary(self) -> str:
        return ", ".join(f"{label} {score:.3f}" for label, score in self.top)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return super().to_dict() | {
            "label": self.label,
            "score": self.score,
            "top": [{"label": label, "score": score} for label, score in self.top],
            "network_size": list(self.network_size),
        }

    def draw(self, image: Image.Image) -> Image.Image:
        """Return a copy of the image with the most probable classes written in its top left corner."""
        picture = image.copy()
        draw = ImageDraw.Draw(picture)
        text = "\n".join(f"{label} {score:.2f}" for label, score in self.top)
        _, _, width, height = draw.multiline_textbbox((0, 0), text, ImageFont.load_default(size=100), spacing=25)
        size = max(min(max(image.size) / 25, 80 * image.width / width, 80 * image.height / height), 1)
        style: dict[str, Any] = {"spacing": size / 4, "stroke_width": size / 10, "stroke_fill": "black"}
        draw.multiline_text((size / 4, 0), text, "white", ImageFont.load_default(size=size), **style)
        return picture


def predict_images(
    model: ClassifierNetwork,
    images: Iterable[ImageSource],
    *,
    resize: Resize | str | None = None,
    views: str = "full",
    batch: int = _CHUNK,
    on_error: OnError = "skip",
) -> Iterator[ClassificationResult | Failure]:
    """Yield a result or failure for each image, in order, with one batch in memory at a time.

    Results are batch-independent: only images of equal size share a forward pass, without padding. If no other image of
    the batch has the same size, the result is bit-identical to that of the image alone; otherwise it may differ by the
    rounding of larger convolutions.

    Args:
        model: classifier; each batch runs in evaluation mode.
        images: images as for :func:`sppnet.data.images.load_image`, read when their batch is processed.
        resize: resize policy; None for the model's default. Must be None for views other than ``full``.
        views: ``full`` or the views to average, see :func:`sppnet.classify.views.view_probabilities`.
        batch: number of images read at a time, at least 1.
        on_error: ``skip`` to yield a failure in place of an image that cannot be used, or ``raise`` its error.
    """
    check_choice("views", views, get_args(Views))
    check_choice("on_error", on_error, get_args(OnError))
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}")
    if views != "full" and resize is not None:
        raise ValueError(f"resize: expected None for {views} views, which have fixed sizes, got {resize}")
    policy = size_policy(model, resize)
    for number, chunk in enumerate(_chunks(images, batch)):
        names = [source_name(source, number * batch + index) for index, source in enumerate(chunk)]
        loaded: list[LoadedImage | Failure] = []
        for name, source in zip(names, chunk, strict=True):
            try:
                loaded.append(read_image(model, source, policy, views))
            except ImageError as error:
                failure = Failure(name, ImageError(name, error.reason))
                if on_error == "raise":
                    raise failure.error from error
                loaded.append(failure)
        good = [item.image for item in loaded if isinstance(item, LoadedImage)]
        with evaluation_mode(model), torch.inference_mode():
            outputs = iter(probabilities(model, good, views))
        for name, item in zip(names, loaded, strict=True):
            yield prediction_of(model, name, item, next(outputs)) if isinstance(item, LoadedImage) else item


@dataclass(frozen=True)
class LoadedImage:
    """An image at the size of the network's input, and its original (height, width)."""

    image: Image.Image
    size: tuple[int, int]


def read_image(model: ClassifierNetwork, source: ImageSource, policy: Resize, views: str = "full") -> LoadedImage:
    """Load an image and resize it by the policy, or keep its size for views other than ``full``.

    Raises:
        sppnet.ImageError: the image cannot be read, is too small for the network, or too elongated for views.
    """
    image = load_image(source)
    size = (image.height, image.width)
    reason = ""
    if views == "full":
        reason = too_small(model.backbone, policy.target_size(*size))
    elif max(size) > _MAX_VIEWS_ASPECT * min(size):
        limit = f"the longer side may be at most {_MAX_VIEWS_ASPECT} times the shorter"
        reason = f"{size[0]} x {size[1]} pixels is too elongated for views; {limit}"
    if reason:
        raise ImageError(str(source) if isinstance(source, str | os.PathLike) else "<image>", reason)
    return LoadedImage(policy(image, model.backbone.interpolation) if views == "full" else image, size)


def too_small(backbone: Backbone, size: tuple[int, int]) -> str:
    """Return why an input of this (height, width) is too small for a backbone; empty if it is not."""
    if min(backbone.geometry.map_size(*size)) >= 1:
        return ""
    smallest = " x ".join(map(str, backbone.geometry.smallest()))
    return f"{size[0]} x {size[1]} pixels is too small for {backbone.name}, which needs at least {smallest}"


def image_vectors(model: ClassifierNetwork, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
    """Compute the pyramid vectors of RGB images, without resizing; images of equal size share forward passes."""
    backbone = model.backbone
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault((image.height, image.width), []).append(index)
    vectors: dict[int, Tensor] = {}
    for (height, width), group in groups.items():
        for part in _chunks(group, max(1, _PASS_PIXELS // (height * width))):
            x = torch.stack([to_tensor(images[index], backbone.mean, backbone.std) for index in part])
            # Channels last makes convolutions of small batches about 15 % faster on the CPU.
            x = x.to(model.device, model.dtype, memory_format=torch.channels_last)
            vectors |= zip(part, model.vectors(x), strict=True)
    return torch.stack([vectors[index] for index in range(len(images))])


def probabilities(
    model: ClassifierNetwork, images: Sequence[Image.Image], views: str = "full"
) -> list[Float[Tensor, " classes"]]:
    """Compute class probabilities of RGB images, without resizing; images of equal size share forward passes.

    Call it in inference mode. The results are on the CPU.
    """
    if not images:
        return []
    if views != "full":
        return [view_probabilities(model, image, views).cpu() for image in images]  # type: ignore[arg-type]
    # One vector at a time: the summation order of a matrix product depends on its number of rows, and predictions must
    # not depend on the other images.
    return [model.head(vector[None]).softmax(1)[0].cpu() for vector in image_vectors(model, images)]


def prediction_of(
    model: ClassifierNetwork, name: str, loaded: LoadedImage, probabilities: Float[Tensor, " classes"]
) -> ClassificationResult:
    """Build the result of an image from its class probabilities."""
    scores, order = probabilities.topk(min(5, len(probabilities)))
    top = tuple((model.config.classes[i], s) for i, s in zip(order.tolist(), scores.tolist(), strict=True))
    network_size = (loaded.image.height, loaded.image.width)
    return ClassificationResult(name, loaded.size, *top[0], top, network_size)


def size_policy(model: ClassifierNetwork, resize: Resize | str | None) -> Resize:
    """Return a resize policy from text, see :meth:`sppnet.Resize.parse`; None gives the model's default."""
    if isinstance(resize, Resize):
        return resize
    if resize is None:
        return model.resize
    return Resize.parse(resize, model.backbone.side, model.config.max_pixels)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
