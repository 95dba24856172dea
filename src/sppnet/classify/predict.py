"""Classification of a stream of images of mixed sizes; unusable images yield failures in their place."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
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
from sppnet.inference.parallel import map_ordered
from sppnet.inference.results import Failure, OnError, Result

S = TypeVar("S")
L = TypeVar("L")
T = TypeVar("T")

UNKNOWN = "unknown"
TOP = 5  # classes in a result
_CHUNK = 32
_PASS_PIXELS = 2_000_000  # per forward pass; the embedded network needs about 500 bytes per pixel
# At a larger ratio of sides, the largest scale of the 96 views would exceed 3 million pixels.
_MAX_VIEWS_ASPECT = 10


@dataclass(frozen=True, repr=False)
class ClassificationResult(Result):
    """Classification of one image.

    Attributes:
        label: most probable class, or ``unknown`` if that was asked for and its probability is too low.
        score: probability of the most probable class.
        top: (class, probability) pairs, most probable first; five, unless another number was asked for.
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
    unknown: bool = False,
    top: int = TOP,
) -> Iterator[ClassificationResult | Failure]:
    """Yield a result or failure for each image, in order.

    On the CPU, as many images are in process at a time as torch uses threads, see
    :func:`sppnet.inference.parallel.map_ordered`, and the result of an image is bit-identical in every call. On other
    devices, images of a batch that have the same size share a forward pass, without padding, so results may differ by
    the rounding of larger convolutions.

    Args:
        model: classifier; it is in evaluation mode until the last result.
        images: images as for :func:`sppnet.data.images.load_image`, read shortly before they are processed.
        resize: resize policy; None for the model's default. Must be None for views other than ``full``.
        views: ``full`` or the views to average, see :func:`sppnet.classify.views.view_probabilities`.
        batch: largest number of images per batch, at least 1; not used on the CPU.
        on_error: ``skip`` to yield a failure in place of an image that cannot be used, or ``raise`` its error.
        unknown: whether to replace the label by ``unknown`` where its probability is below the model's threshold.
        top: largest number of classes in a result.
    """
    check_choice("views", views, get_args(Views))
    check_choice("on_error", on_error, get_args(OnError))
    for name, number in (("batch", batch), ("top", top)):
        if number < 1:
            raise ValueError(f"{name}: expected at least 1, got {number}")
    if views != "full" and resize is not None:
        raise ValueError(f"resize: expected None for {views} views, which have fixed sizes, got {resize}")
    if unknown and model.config.threshold is None:
        raise ValueError(
            "unknown: expected a classifier with a threshold, got one without; train it again with the head ridge or"
            " svm, or with validation images"
        )
    policy = size_policy(model, resize)

    def load(item: tuple[int, ImageSource]) -> tuple[str, LoadedImage | Failure]:
        name = source_name(item[1], item[0])
        try:
            return name, read_image(model, item[1], policy, views)
        except ImageError as error:
            return name, Failure(name, ImageError(name, error.reason))

    def classify(items: list[tuple[str, LoadedImage | Failure]]) -> list[ClassificationResult | Failure]:
        good = [(name, loaded) for name, loaded in items if isinstance(loaded, LoadedImage)]
        outputs = iter(probabilities(model, [loaded.image for _, loaded in good], views))
        return [
            item if isinstance(item, Failure) else prediction_of(model, name, item, next(outputs), unknown, top)
            for name, item in items
        ]

    batches = map_batches(load, classify, enumerate(images), model.device, batch)
    with evaluation_mode(model), closing(batches) as results:
        for result in results:
            if isinstance(result, Failure) and on_error == "raise":
                raise result.error
            yield result


def map_batches(
    load: Callable[[S], L], run: Callable[[list[L]], list[T]], items: Iterable[S], device: torch.device, batch: int
) -> Generator[T, None, None]:
    """Yield the results of ``run(list(map(load, part)))`` for all items, in order, in inference mode.

    On the CPU, a part is one item, and several are in process at a time; on other devices it is a batch.
    """

    def infer(part: list[L]) -> list[T]:
        with torch.inference_mode():
            return run(part)

    if device.type == "cpu":
        with closing(map_ordered(lambda item: infer([load(item)]), items)) as parts:
            yield from chain.from_iterable(parts)
    else:
        with closing(map_ordered(load, items)) as loaded:
            yield from chain.from_iterable(map(infer, _chunks(loaded, batch)))


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
    model: ClassifierNetwork,
    name: str,
    loaded: LoadedImage,
    probabilities: Float[Tensor, " classes"],
    unknown: bool = False,
    top: int = TOP,
) -> ClassificationResult:
    """Build the result of an image from its class probabilities."""
    scores, order = probabilities.topk(min(top, len(probabilities)))
    best = tuple((model.config.classes[i], s) for i, s in zip(order.tolist(), scores.tolist(), strict=True))
    network_size = (loaded.image.height, loaded.image.width)
    label, score = best[0]
    if unknown and score < (model.config.threshold or 0):
        label = UNKNOWN
    return ClassificationResult(name, loaded.size, label, score, best, network_size)


def size_policy(model: ClassifierNetwork, resize: Resize | str | None) -> Resize:
    """Return a resize policy from text, see :meth:`sppnet.Resize.parse`; None gives the model's default.

    Raises:
        ValueError: an illegal policy, or one whose side is too small for the network.
    """
    if resize is None:
        return model.resize
    if isinstance(resize, str):
        resize = Resize.parse(resize, model.backbone.side, model.config.max_pixels)
    resize = replace(resize, multiple=model.backbone.multiple)
    if resize.side is not None and too_small(model.backbone, (resize.side, resize.side)):
        least = max(model.backbone.geometry.smallest())
        raise ValueError(f"resize: expected a side of at least {least} for {model.backbone.name}, got {resize}")
    return resize


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
