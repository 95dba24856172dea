"""Answers for images of mixed sizes, in order, with a line for every file that could not be read."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, get_args

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.classify.network import ClassifierNetwork
from sppnet.classify.views import Views, view_probabilities
from sppnet.data.images import ImageSource, load_image, to_tensor
from sppnet.data.resize import Resize
from sppnet.errors import ImageError, choose
from sppnet.inference.results import Failure

T = TypeVar("T")

_CHUNK = 32
# A pass of the embedded network takes about 500 bytes a pixel.
_PASS_PIXELS = 2_000_000
# The largest of the 96 views' scales of a longer image would have more than 3 million pixels.
_MAX_VIEWS_ASPECT = 10


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


def predict_images(
    model: ClassifierNetwork,
    images: Iterable[ImageSource],
    *,
    resize: Resize | str | None = None,
    views: str = "full",
    batch: int = _CHUNK,
) -> Iterator[Prediction | Failure]:
    """Classify images as they come; memory holds one batch.

    The images of a batch that have one size go through the network together, no other ones do, and nothing is
    padded: each answer is the one that the image gets alone, to the last bit where no other image of the batch has its
    size, and to the rounding of a larger convolution where one has.

    Args:
        model: in evaluation mode while this runs.
        images: paths, bytes, Pillow images or arrays.
        resize: None for the model's own policy; views other than ``full`` have sizes of their own.
        views: ``full`` or several, see :func:`sppnet.classify.views.view_probabilities`.
        batch: images read at a time, >= 1.
    """
    choose("views", views, get_args(Views))
    if batch < 1:
        raise ValueError(f"batch: expected at least 1 image; got {batch}")
    if views != "full" and resize is not None:
        raise ValueError(f"resize: {views} views have sizes of their own; leave resize out, or take views='full'")
    policy = size_policy(model, resize)
    training = model.training
    model.eval()
    try:
        for number, chunk in enumerate(_chunks(images, batch)):
            names = [_name(source, number * batch + index) for index, source in enumerate(chunk)]
            loaded = [_load(model, source, name, policy, views) for name, source in zip(names, chunk, strict=True)]
            good = [item.image for item in loaded if isinstance(item, Loaded)]
            with torch.inference_mode():
                answers = iter(probabilities(model, good, views))
            for name, item in zip(names, loaded, strict=True):
                yield answer_of(model, name, item, next(answers)) if isinstance(item, Loaded) else item
    finally:
        model.train(training)


@dataclass(frozen=True)
class Loaded:
    """An image as the network is to see it, and the (height, width) that it had."""

    image: Image.Image
    size: tuple[int, int]


def read_image(model: ClassifierNetwork, source: ImageSource, policy: Resize, views: str = "full") -> Loaded:
    """Load an image and bring it to the size that the policy gives it; views have their own sizes.

    Raises:
        sppnet.ImageError: it cannot be read, is too small for the network, or too long and thin for views.
    """
    image = load_image(source)
    geometry = model.backbone.geometry
    height, width = policy.target_size(image.height, image.width)
    reason = ""
    if views != "full":
        if max(image.size) > _MAX_VIEWS_ASPECT * min(image.size):
            reason = (
                f"{image.height} x {image.width} pixels are too long and thin for views;"
                f" the sides may differ {_MAX_VIEWS_ASPECT} times"
            )
    elif min(geometry.map_size(height, width)) < 1:
        smallest = " x ".join(map(str, geometry.smallest()))
        reason = f"{height} x {width} pixels are too few for {model.backbone.name}; the smallest size is {smallest}"
    if reason:
        raise ImageError(str(source) if isinstance(source, str | os.PathLike) else "<image>", reason)
    size = (image.height, image.width)
    return Loaded(policy(image, model.backbone.interpolation) if views == "full" else image, size)


def _load(model: ClassifierNetwork, source: ImageSource, name: str, policy: Resize, views: str) -> Loaded | Failure:
    try:
        return read_image(model, source, policy, views)
    except ImageError as error:
        return Failure(name, ImageError(name, error.reason))


def image_vectors(model: ClassifierNetwork, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
    """Pyramid vectors of RGB images as they are, in order; images of equal size share passes."""
    backbone = model.backbone
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault((image.height, image.width), []).append(index)
    vectors: list[Tensor | None] = [None] * len(images)
    for (height, width), group in groups.items():
        share = max(1, _PASS_PIXELS // (height * width))
        for part in _chunks(group, share):
            x = torch.stack([to_tensor(images[index], backbone.mean, backbone.std) for index in part])
            # In this layout the convolutions of small batches take some 15 % less time on the CPU.
            x = x.to(model.device, model.dtype, memory_format=torch.channels_last)
            for index, vector in zip(part, model.vectors(x), strict=True):
                vectors[index] = vector
    return torch.stack([vector for vector in vectors if vector is not None])


def probabilities(
    model: ClassifierNetwork, images: Sequence[Image.Image], views: str = "full"
) -> list[Float[Tensor, " classes"]]:
    """Probabilities of the classes for RGB images as they are, in order, on the CPU; images of equal size share passes.

    Call it in inference mode.
    """
    if not images:
        return []
    if views != "full":
        return [view_probabilities(model, image, views).cpu() for image in images]  # type: ignore[arg-type]
    # One vector at a time: a product of another height sums in another order, and the answer of an image that has
    # its size to itself is then equal to the last bit, whatever it is asked together with.
    return [model.head(vector[None]).softmax(1)[0].cpu() for vector in image_vectors(model, images)]


def answer_of(
    model: ClassifierNetwork, name: str, loaded: Loaded, probabilities: Float[Tensor, " classes"]
) -> Prediction:
    """The answer for an image, by the probabilities of its classes."""
    scores, order = probabilities.topk(min(5, len(probabilities)))
    top = tuple((model.config.classes[i], s) for i, s in zip(order.tolist(), scores.tolist(), strict=True))
    seen = (loaded.image.height, loaded.image.width)
    return Prediction(name, top[0][0], top[0][1], top, loaded.size, seen)


def size_policy(model: ClassifierNetwork, resize: Resize | str | None) -> Resize:
    """The policy asked for: None for the model's own, text as :meth:`sppnet.Resize.parse` reads it."""
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
