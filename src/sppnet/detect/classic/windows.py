"""Windows of training images with their labels, and their vectors, cached on disk in half precision."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import ImageOps
from torch import Tensor, nn

from sppnet.backbones.backbone import FeatureMap
from sppnet.backbones.weights import weights_digest
from sppnet.data.formats.detection import DetectionSample
from sppnet.data.images import load_image
from sppnet.detect.classic.rcnn import CropEncoder
from sppnet.errors import ImageError
from sppnet.features.encoder import ImageMaps, RegionEncoder
from sppnet.io.files import read_tensors, save_tensors
from sppnet.io.remote import writers_lock
from sppnet.ops.boxes import mirror, overlaps
from sppnet.progress import track
from sppnet.training.processes import gather

# Windows that overlap a difficult object by more are neither positives nor background.
_DIFFICULT_OVERLAP = 0.3
_CROPS = 256  # windows per file of crop vectors, the most that a killed run loses


@dataclass(frozen=True)
class Windows:
    """Windows of one image: its objects, followed by its proposals.

    Attributes:
        path: image file.
        boxes: xyxy edges in pixels of the image.
        objects: number of objects, which are the first boxes.
        labels: class of the object that each box overlaps most; 0 in an image without objects.
        overlap: overlap with that object.
        targets: box of that object; the window itself in an image without objects.
        others: largest overlap with an object of each class, which selects the negatives of the SVMs.
        counts: False for windows on difficult objects, which are not used in training.
    """

    path: Path
    boxes: Float[Tensor, "k 4"]
    objects: int
    labels: Int[Tensor, " k"]
    overlap: Float[Tensor, " k"]
    targets: Float[Tensor, "k 4"]
    others: Float[Tensor, "k c"]
    counts: Bool[Tensor, " k"]


def label_windows(sample: DetectionSample, proposals: Float[Tensor, "k 4"], num_classes: int) -> Windows:
    """Label the windows of a training image: the objects that are not difficult, then the proposals.

    Args:
        sample: image with its objects.
        proposals: xyxy edges in pixels of the image.
        num_classes: number of classes.
    """
    objects, labels = sample.boxes[~sample.difficult], sample.labels[~sample.difficult]
    boxes = torch.cat((objects, proposals))
    others = torch.zeros(len(boxes), num_classes)
    best, nearest = torch.zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.long)
    if len(objects):
        shared = overlaps(boxes, objects)
        best, nearest = shared.max(1)
        for label in labels.unique().tolist():
            others[:, label] = shared[:, labels == label].amax(1)
    counts = torch.ones(len(boxes), dtype=torch.bool)
    if sample.difficult.any():
        shared = overlaps(boxes, sample.boxes[sample.difficult]).amax(1)
        counts = (shared <= _DIFFICULT_OVERLAP) | (best >= shared)
    targets = objects[nearest] if len(objects) else boxes
    window_labels = labels[nearest] if len(objects) else nearest
    return Windows(sample.path, boxes, len(objects), window_labels, best, targets, others, counts)


class MapVectors:
    """Vectors of windows, pooled on demand from feature maps cached on disk (SPP-net).

    Args:
        encoder: encoder that computes the maps; its weights and scales determine the name of the cache folder.
        windows: windows of each image.
        folder: parent of the cache folders.
    """

    def __init__(self, encoder: RegionEncoder, windows: Sequence[Windows], folder: Path) -> None:
        self.encoder, self.windows = encoder, windows
        self.length = encoder.length
        parts = (encoder.backbone.name, encoder.backbone.stage, encoder.scales, encoder.max_side)
        self._folder = folder / f"maps-{_digest(encoder.backbone, parts)}"

    def compute(self, description: str, mirrored: bool = False, fabric: Any = None) -> list[ImageError]:
        """Compute the missing maps, in shares by the processes of `fabric`; return the errors of all processes."""

        def compute(number: int) -> None:
            for flag in (False, True)[: 1 + mirrored]:
                self.maps(self.windows[number].path, flag)

        return _compute(compute, len(self.windows), description, self._folder, fabric)

    def vectors(self, image: int, rows: Int[Tensor, " k"], mirrored: bool = False) -> Float[Tensor, "k d"]:
        """Return the vectors of some windows of an image, or of the mirrored image."""
        windows = self.windows[image]
        maps = self.maps(windows.path, mirrored)
        boxes = windows.boxes[rows]
        return self.encoder.vectors(maps, mirror(boxes, maps.size[1]) if mirrored else boxes)

    def maps(self, path: Path, mirrored: bool = False) -> ImageMaps:
        """Return the maps of an image, from the cache if possible; float32 values rounded to float16."""
        file = self._folder / f"{content_digest(path)}{'-mirrored' if mirrored else ''}.safetensors"
        stride = self.encoder.backbone.geometry.stride
        if file.exists():
            tensors, _ = read_tensors(file)
            sizes = tensors["sizes"].tolist()
            maps = tuple(
                FeatureMap(tensors[f"map{number}"].float(), stride, self.encoder.backbone.geometry.offset(*size))
                for number, size in enumerate(sizes[1:])
            )
            return ImageMaps(tuple(sizes[0]), tuple(map(tuple, sizes[1:])), maps)
        image = load_image(path)
        with torch.inference_mode():
            computed = self.encoder.prepare(ImageOps.mirror(image) if mirrored else image)
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"map{number}": _to_half(features.data) for number, features in enumerate(computed.maps)}
        save_tensors(tensors | {"sizes": torch.tensor([computed.size, *computed.network_sizes])}, file)
        # Back to float32, because the CPU kernels do not support float16.
        maps = tuple(replace(old, data=x.float()) for old, x in zip(computed.maps, tensors.values(), strict=True))
        return replace(computed, maps=maps)


class CropVectors:
    """Vectors of windows, computed by one forward pass each and cached on disk (R-CNN).

    Args:
        encoder: encoder of the windows; its weights, levels and side name the cache folder, boxes name the files.
        windows: windows of each image.
        folder: parent of the cache folders.
    """

    def __init__(self, encoder: CropEncoder, windows: Sequence[Windows], folder: Path) -> None:
        self.encoder, self.windows = encoder, windows
        self.length = encoder.length
        parts = (encoder.backbone.name, encoder.backbone.stage, encoder.levels, encoder.reduce, encoder.side)
        self._folder = folder / f"crops-{_digest(encoder.backbone, parts)}"

    def compute(self, description: str, mirrored: bool = False, fabric: Any = None) -> list[ImageError]:
        """Compute the missing vectors, like :meth:`MapVectors.compute`."""

        def compute(number: int) -> None:
            for flag in (False, True)[: 1 + mirrored]:
                for part in range(-(-len(self.windows[number].boxes) // _CROPS)):
                    self._part(number, part, flag)

        return _compute(compute, len(self.windows), description, self._folder, fabric)

    def vectors(self, image: int, rows: Int[Tensor, " k"], mirrored: bool = False) -> Float[Tensor, "k d"]:
        """Return the vectors of some windows of an image, or of the mirrored image."""
        out = torch.empty(len(rows), self.length, dtype=torch.float16)
        for part in (rows // _CROPS).unique().tolist():
            in_part = rows // _CROPS == part
            out[in_part] = self._part(image, part, mirrored)[rows[in_part] - part * _CROPS]
        return out

    def _part(self, image: int, part: int, mirrored: bool) -> Tensor:
        windows = self.windows[image]
        boxes = windows.boxes[part * _CROPS : (part + 1) * _CROPS]
        name = hashlib.sha256(boxes.numpy().tobytes()).hexdigest()[:16] + ("-mirrored" if mirrored else "")
        file = self._folder / content_digest(windows.path) / f"{name}.safetensors"
        if not file.exists():
            picture = load_image(windows.path)
            if mirrored:
                picture, boxes = ImageOps.mirror(picture), mirror(boxes, picture.width)
            with torch.inference_mode():
                distinct = self.encoder.distinct(self.encoder.prepare(picture), boxes)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_tensors({"vectors": _to_half(distinct.data)}, file)
        return read_tensors(file)[0]["vectors"]


WindowVectors = MapVectors | CropVectors


def _compute(
    compute: Callable[[int], None], images: int, description: str, folder: Path, fabric: Any
) -> list[ImageError]:
    """Call `compute` for each image of this process's share; return the errors of all processes."""
    numbers = range(images) if fabric is None else range(images)[fabric.global_rank :: fabric.world_size]
    failures = []
    folder.mkdir(parents=True, exist_ok=True)
    with writers_lock(folder):
        for number in track(numbers, description, len(numbers)):
            try:
                compute(number)
            except ImageError as error:
                failures.append(error)
    return failures if fabric is None else gather(fabric, failures)


def content_digest(path: Path) -> str:
    """Return a short hash of a file's content.

    Raises:
        sppnet.ImageError: the file cannot be read.
    """
    try:
        state = path.stat()
        return _content_digest(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise ImageError(str(path), error.strerror or str(error)) from error


@lru_cache(maxsize=100_000)
def _content_digest(path: Path, size: int, modified: int) -> str:  # noqa: ARG001
    """Hash a file; memoized, because training requests the same images repeatedly."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:24]


def _digest(network: nn.Module, parts: tuple[object, ...]) -> str:
    return hashlib.sha256(f"{weights_digest(network)} {parts!r}".encode()).hexdigest()[:16]


def _to_half(x: Tensor) -> Tensor:
    """Convert to float16 on the CPU, clamping to its finite range."""
    limit = torch.finfo(torch.float16).max
    return x.detach().clamp(-limit, limit).half().cpu().contiguous()


def usable_images(windows: Sequence[Windows], failures: Sequence[ImageError]) -> list[int]:
    """Return the indices of the readable images.

    Raises:
        ValueError: no readable image has an object.
    """
    unreadable = {failure.path for failure in failures}
    usable = [number for number, part in enumerate(windows) if str(part.path) not in unreadable]
    if not any(windows[number].objects for number in usable):
        first = f"; the first error: {failures[0]}" if failures else ""
        raise ValueError(f"data: expected a readable image with an object, got none{first}")
    return usable
