"""Prediction for a stream of images of mixed sizes; unreadable images yield failures in their place."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, get_args

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.backbones.modes import evaluation_mode
from sppnet.classify.network import ClassifierNetwork
from sppnet.classify.views import Views, view_probabilities
from sppnet.data.images import ImageSource, load_image, to_tensor
from sppnet.data.resize import Resize
from sppnet.errors import ImageError, check_choice
from sppnet.inference.results import Failure

T = TypeVar("T")

_CHUNK = 32
_PASS_PIXELS = 2_000_000  # per forward pass; the embedded network needs about 500 bytes per pixel
# At a larger ratio of sides, the largest scale of the 96 views would exceed 3 million pixels.
_MAX_VIEWS_ASPECT = 10


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Attributes:
        source: path, or a generated name for an image without one.
        label: most probable class.
        score: probability of `label`.
        top: up to five (class, probability) pairs, most probable first.
        size: (height, width) of the image, after applying the EXIF orientation.
        network_size: (height, width) of the network's input.
    """

    source: str
    label: str
    score: float
    top: tuple[tuple[str, float], ...]
    size: tuple[int, int]
    network_size: tuple[int, int]


def predict_images(
    model: ClassifierNetwork,
    images: Iterable[ImageSource],
    *,
    resize: Resize | str | None = None,
    views: str = "full",
    batch: int = _CHUNK,
) -> Iterator[Prediction | Failure]:
    """Yield a prediction or failure for each image, in order, with one batch in memory at a time.

    Predictions are batch-independent: only images of equal size share a forward pass, without padding. If no other
    image of the batch has the same size, the result is bit-identical to that of the image alone; otherwise it may
    differ by the rounding of larger convolutions.

    Args:
        model: classifier; each batch runs in evaluation mode.
        images: paths, bytes, Pillow images or arrays.
        resize: resize policy; None for the model's default. Must be None for views other than ``full``.
        views: ``full`` or the views to average, see :func:`sppnet.classify.views.view_probabilities`.
        batch: number of images read at a time, at least 1.
    """
    check_choice("views", views, get_args(Views))
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}")
    if views != "full" and resize is not None:
        raise ValueError(f"resize: expected None for {views} views, which have fixed sizes, got {resize}")
    policy = size_policy(model, resize)
    for number, chunk in enumerate(_chunks(images, batch)):
        names = [_name(source, number * batch + index) for index, source in enumerate(chunk)]
        loaded = [_load(model, source, name, policy, views) for name, source in zip(names, chunk, strict=True)]
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
    geometry = model.backbone.geometry
    height, width = policy.target_size(image.height, image.width)
    reason = ""
    if views != "full":
        if max(image.size) > _MAX_VIEWS_ASPECT * min(image.size):
            reason = (
                f"{image.height} x {image.width} pixels is too elongated for views; the longer side may be at most"
                f" {_MAX_VIEWS_ASPECT} times the shorter"
            )
    elif min(geometry.map_size(height, width)) < 1:
        smallest = " x ".join(map(str, geometry.smallest()))
        reason = f"{height} x {width} pixels is too small for {model.backbone.name}, which needs at least {smallest}"
    if reason:
        raise ImageError(str(source) if isinstance(source, str | os.PathLike) else "<image>", reason)
    size = (image.height, image.width)
    return LoadedImage(policy(image, model.backbone.interpolation) if views == "full" else image, size)


def _load(
    model: ClassifierNetwork, source: ImageSource, name: str, policy: Resize, views: str
) -> LoadedImage | Failure:
    try:
        return read_image(model, source, policy, views)
    except ImageError as error:
        return Failure(name, ImageError(name, error.reason))


def image_vectors(model: ClassifierNetwork, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
    """Compute the pyramid vectors of RGB images, without resizing; images of equal size share forward passes."""
    backbone = model.backbone
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault((image.height, image.width), []).append(index)
    vectors: list[Tensor | None] = [None] * len(images)
    for (height, width), group in groups.items():
        per_pass = max(1, _PASS_PIXELS // (height * width))
        for part in _chunks(group, per_pass):
            x = torch.stack([to_tensor(images[index], backbone.mean, backbone.std) for index in part])
            # Channels last makes convolutions of small batches about 15 % faster on the CPU.
            x = x.to(model.device, model.dtype, memory_format=torch.channels_last)
            for index, vector in zip(part, model.vectors(x), strict=True):
                vectors[index] = vector
    return torch.stack([vector for vector in vectors if vector is not None])


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
) -> Prediction:
    """Build the prediction of an image from its class probabilities."""
    scores, order = probabilities.topk(min(5, len(probabilities)))
    top = tuple((model.config.classes[i], s) for i, s in zip(order.tolist(), scores.tolist(), strict=True))
    network_size = (loaded.image.height, loaded.image.width)
    return Prediction(name, top[0][0], top[0][1], top, loaded.size, network_size)


def size_policy(model: ClassifierNetwork, resize: Resize | str | None) -> Resize:
    """Return a resize policy from text, see :meth:`sppnet.Resize.parse`; None gives the model's default."""
    if isinstance(resize, Resize):
        return resize
    if resize is None:
        return model.resize
    return Resize.parse(resize, model.backbone.side, model.config.max_pixels)


def _name(source: ImageSource, index: int) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "filename", "")) or f"image {index}"


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
