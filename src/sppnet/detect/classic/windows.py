"""The windows of a training set: what each is of, and its vector, computed once and kept on disk in half precision."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from PIL import ImageOps
from torch import Tensor, nn

from sppnet.backbones.backbone import FeatureMap
from sppnet.backbones.weights import weights_digest
from sppnet.console import track
from sppnet.data.formats.detection import DetectionSample
from sppnet.data.images import load_image
from sppnet.detect.classic.rcnn import CropEncoder
from sppnet.errors import ImageError
from sppnet.features.encoder import ImageMaps, RegionEncoder
from sppnet.io.files import read_tensors, save_tensors
from sppnet.ops.boxes import mirror, overlaps

# A proposal on an object that does not count is no example of background.
_DIFFICULT_OVERLAP = 0.3
_CROPS = 256  # windows of one part of the crops' files; what a killed run loses at most


@dataclass(frozen=True)
class Windows:
    """The windows of one image: its objects first, then its proposals.

    Attributes:
        path: the image file.
        boxes: xyxy edges in pixels of the image.
        objects: so many of the first boxes are objects.
        labels: class of the object that each box overlaps most; 0 where the image has none.
        overlap: with that object.
        targets: that object's box; the window itself where the image has none.
        others: overlap with the nearest object of each class, which SVMs ask for.
        counts: False for windows on difficult objects, which are examples of nothing.
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
    """Windows of a training image: its objects but the difficult ones, then the proposals.

    Args:
        sample: the image and its objects.
        proposals: xyxy edges in pixels of the image.
        num_classes: labels are below this.
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
    found = labels[nearest] if len(objects) else nearest
    return Windows(sample.path, boxes, len(objects), found, best, targets, others, counts)


class MapVectors:
    """Vectors of windows, pooled when they are asked for from maps that are kept on disk (SPP-net).

    Args:
        encoder: makes the maps; their place on disk is named by its weights and scales.
        windows: of each image.
        folder: sets of maps lie here side by side.
    """

    def __init__(self, encoder: RegionEncoder, windows: Sequence[Windows], folder: Path) -> None:
        self.encoder, self.windows = encoder, windows
        self.length = encoder.length
        parts = (encoder.backbone.name, encoder.backbone.stage, encoder.scales, encoder.max_side)
        self._folder = folder / f"maps-{_digest(encoder.backbone, parts)}"

    def compute(self, description: str, mirrored: bool = False) -> list[ImageError]:
        """Make all maps that are not there yet; the images that cannot be read."""
        failures = []
        for windows in track(self.windows, description, len(self.windows)):
            try:
                self.maps(windows.path)
                if mirrored:
                    self.maps(windows.path, mirrored=True)
            except ImageError as error:
                failures.append(error)
        return failures

    def vectors(self, image: int, rows: Int[Tensor, " k"], mirrored: bool = False) -> Float[Tensor, "k d"]:
        """Vectors of some windows of an image, or of its mirror image."""
        windows = self.windows[image]
        maps = self.maps(windows.path, mirrored)
        boxes = windows.boxes[rows]
        return self.encoder.vectors(maps, mirror(boxes, maps.size[1]) if mirrored else boxes)

    def maps(self, path: Path, mirrored: bool = False) -> ImageMaps:
        """Maps of an image, from the disk if they are there; rounded to half precision and held in single."""
        place = self._folder / f"{content_digest(path)}{'-mirrored' if mirrored else ''}.safetensors"
        stride = self.encoder.backbone.geometry.stride
        if place.exists():
            tensors, _ = read_tensors(place)
            sizes = tensors["sizes"].tolist()
            maps = tuple(
                FeatureMap(tensors[f"map{number}"].float(), stride, self.encoder.backbone.geometry.offset(*size))
                for number, size in enumerate(sizes[1:])
            )
            return ImageMaps(tuple(sizes[0]), tuple(map(tuple, sizes[1:])), maps)
        image = load_image(path)
        with torch.inference_mode():
            made = self.encoder.prepare(ImageOps.mirror(image) if mirrored else image)
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"map{number}": _storable(one.data) for number, one in enumerate(made.maps)}
        save_tensors(tensors | {"sizes": torch.tensor([made.size, *made.network_sizes])}, place, shared=True)
        # The CPU's kernels take single precision and bfloat16.
        rounded = tuple(replace(one, data=tensors[f"map{number}"].float()) for number, one in enumerate(made.maps))
        return replace(made, maps=rounded)


class CropVectors:
    """Vectors of windows, one pass of the network each, kept on disk (R-CNN).

    Args:
        encoder: makes the vectors; their place on disk is named by its weights, its levels and the boxes.
        windows: of each image.
        folder: sets of vectors lie here side by side.
    """

    def __init__(self, encoder: CropEncoder, windows: Sequence[Windows], folder: Path) -> None:
        self.encoder, self.windows = encoder, windows
        self.length = encoder.length
        parts = (encoder.backbone.name, encoder.backbone.stage, encoder.levels, encoder.reduce, encoder.side)
        self._folder = folder / f"crops-{_digest(encoder.backbone, parts)}"

    def compute(self, description: str, mirrored: bool = False) -> list[ImageError]:
        """Make all vectors that are not there yet; the images that cannot be read."""
        failures = []
        for number, windows in enumerate(track(self.windows, description, len(self.windows))):
            try:
                for flag in (False, True)[: 1 + mirrored]:
                    for part in range(-(-len(windows.boxes) // _CROPS)):
                        self._part(number, part, flag)
            except ImageError as error:
                failures.append(error)
        return failures

    def vectors(self, image: int, rows: Int[Tensor, " k"], mirrored: bool = False) -> Float[Tensor, "k d"]:
        """Vectors of some windows of an image, or of its mirror image."""
        out = torch.empty(len(rows), self.length, dtype=torch.float16)
        for part in (rows // _CROPS).unique().tolist():
            mine = rows // _CROPS == part
            out[mine] = self._part(image, part, mirrored)[rows[mine] - part * _CROPS]
        return out

    def _part(self, image: int, part: int, mirrored: bool) -> Tensor:
        windows = self.windows[image]
        boxes = windows.boxes[part * _CROPS : (part + 1) * _CROPS]
        name = hashlib.sha256(boxes.numpy().tobytes()).hexdigest()[:16] + ("-mirrored" if mirrored else "")
        place = self._folder / content_digest(windows.path) / f"{name}.safetensors"
        if not place.exists():
            picture = load_image(windows.path)
            if mirrored:
                picture, boxes = ImageOps.mirror(picture), mirror(boxes, picture.width)
            with torch.inference_mode():
                made = self.encoder.distinct(self.encoder.prepare(picture), boxes)
            place.parent.mkdir(parents=True, exist_ok=True)
            save_tensors({"vectors": _storable(made.data)}, place, shared=True)
        return read_tensors(place)[0]["vectors"]


WindowVectors = MapVectors | CropVectors


def content_digest(path: Path) -> str:
    """A name for the content of a file.

    Raises:
        sppnet.ImageError: it cannot be read.
    """
    try:
        state = path.stat()
        return _content_digest(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise ImageError(str(path), error.strerror or str(error)) from error


@lru_cache(maxsize=100_000)
def _content_digest(path: Path, size: int, modified: int) -> str:  # noqa: ARG001
    """Training asks for each image again and again."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:24]


def _digest(network: nn.Module, parts: tuple[object, ...]) -> str:
    return hashlib.sha256(f"{weights_digest(network)} {parts!r}".encode()).hexdigest()[:16]


def _storable(x: Tensor) -> Tensor:
    """Half precision, with what would become infinite at its largest number."""
    limit = torch.finfo(torch.float16).max
    return x.detach().clamp(-limit, limit).half().cpu().contiguous()


def usable_images(windows: Sequence[Windows], failures: Sequence[ImageError]) -> list[int]:
    """Numbers of the images that can be read.

    Raises:
        ValueError: none of them has an object.
    """
    bad = {failure.path for failure in failures}
    usable = [number for number, one in enumerate(windows) if str(one.path) not in bad]
    if not any(windows[number].objects for number in usable):
        raise ValueError(f"data: no image with an object can be read; the first of {len(failures)}: {failures[0]}")
    return usable
