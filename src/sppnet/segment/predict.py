"""Segmentation of images, and of huge image files with results as masks, overlays and probabilities."""

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Integer
from PIL import Image

from sppnet.data.formats.masks import Colour
from sppnet.data.images import MAX_PIXELS, ImageSource, load_image, source_name
from sppnet.errors import ImageError, check_choice
from sppnet.inference.memory import MemoryLimitError, check_decoding
from sppnet.inference.results import Failure, OnError, Result
from sppnet.io.remote import atomic_write
from sppnet.segment.network import SegmenterNetwork
from sppnet.segment.options import View
from sppnet.segment.pictures import count_labels, labels_picture, overlay, save_png
from sppnet.segment.tiles import label_dtype, segment_to_file
from sppnet.segment.views import check_view, map_images, needs_tiles, pixel_probabilities, segment_image

OUTPUTS = {"palette": ".png", "overlay": "_overlay.png", "probabilities": "_probabilities.npy"}


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationResult(Result):
    """Class of each pixel of an image.

    Attributes:
        labels: class index of each pixel, (height, width), uint8, or uint16 for 256 classes or more.
        classes: class names, in index order.
        colours: RGB colors of the classes in pictures; missing ones default to VOC's.
    """

    labels: Integer[np.ndarray, "h w"]
    classes: tuple[str, ...]
    colours: tuple[Colour, ...] = ()

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the pixels by class, largest first, without absent classes."""
        counts = count_labels(self.labels, len(self.classes))
        order = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
        return {self.classes[index]: int(counts[index]) / self.labels.size for index in order}

    def to_dict(self) -> dict[str, Any]:
        """Return source, size and shares of the classes as JSON types."""
        return super().to_dict() | {"classes": [{"label": name, "share": share} for name, share in self.shares.items()]}

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the image blended with the class colors, and a legend; see :func:`sppnet.segment.pictures.overlay`."""
        return overlay(image, self.labels, self.classes, self.colours)

    def _summary(self) -> str:
        return ", ".join(f"{name} {share:.1%}" for name, share in itertools.islice(self.shares.items(), 5))


def predict_images(
    model: SegmenterNetwork, images: Iterable[ImageSource], view: View | None = None, on_error: OnError = "skip"
) -> Iterator[SegmentationResult | Failure]:
    """Yield a result or failure for each image, in order; see :meth:`sppnet.segment.model.Segmenter.predict`."""
    check_choice("on_error", on_error, get_args(OnError))
    view = view or View()
    check_view(model, view)

    def load(item: tuple[int, ImageSource], view: View) -> tuple[str, Image.Image | ImageError]:
        return _load(item[1], source_name(item[1], item[0]), view)

    def run(loaded: tuple[str, Image.Image | ImageError], view: View) -> SegmentationResult | Failure:
        name, image = loaded
        if isinstance(image, Image.Image):
            try:
                return _result(model, name, segment_image(model, image, view).numpy())
            except MemoryLimitError as error:  # the next image may need less
                image = ImageError(name, str(error))
        return Failure(name, image)

    with closing(map_images(model, load, run, enumerate(images), itemgetter(1), view)) as results:
        for result in results:
            if isinstance(result, Failure) and on_error == "raise":
                raise result.error
            yield result


def segment_files(
    model: SegmenterNetwork,
    paths: Sequence[Path],
    stems: Sequence[Path | None],
    write: Sequence[str] = ("palette", "overlay"),
    view: View | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[SegmentationResult, dict[str, str]] | Failure]:
    """Segment image files, write the results, and yield them in order.

    The labels of a tiled image are written tile by tile to a file next to the results; if the process is killed, the
    same call continues from it.

    Args:
        model: segmenter; it is in evaluation mode until the last result.
        paths: paths of the images.
        stems: for each image, the path of the results without suffix, see :func:`output_file`; None to write nothing.
        write: results to write: ``palette`` (class indices with a palette), ``overlay`` (the image blended with the
            class colors) and ``probabilities`` (float16 of shape (classes, height, width)).
        view: scales, tiles and memory limit; None for the whole image in one pass.
        max_pixels: see :func:`sppnet.data.images.load_image`.

    Yields:
        The result, and the path of each written file, by output; or a failure if the image cannot be read or needs more
        memory than the limit.

    Raises:
        ValueError: an output is unknown.
    """
    for output in write:
        check_choice("write", output, OUTPUTS)

    def load(item: tuple[Path, Path | None], view: View) -> tuple[tuple[Path, Path | None], Image.Image | ImageError]:
        return item, _load(item[0], str(item[0]), view, max_pixels)[1]

    def run(
        loaded: tuple[tuple[Path, Path | None], Image.Image | ImageError], view: View
    ) -> tuple[SegmentationResult, dict[str, str]] | Failure:
        (path, stem), image = loaded
        if isinstance(image, ImageError):
            return Failure(str(path), image)
        files = {output: output_file(stem, output) for output in OUTPUTS if output in write} if stem else {}
        try:
            with _labels(model, image, view, path, stem, files.get("probabilities")) as labels:
                result = _result(model, str(path), labels)
                if "palette" in files:
                    save_png(labels_picture(result.labels, result.colours), files["palette"])
                if "overlay" in files:
                    save_png(result.draw(image), files["overlay"])
        except MemoryLimitError as error:  # the next image may need less
            return Failure(str(path), ImageError(str(path), str(error)))
        return result, {output: str(file) for output, file in files.items()}

    return map_images(model, load, run, zip(paths, stems, strict=True), itemgetter(0), view or View())


def _load(
    source: ImageSource, name: str, view: View, max_pixels: int = MAX_PIXELS
) -> tuple[str, Image.Image | ImageError]:
    """Return the name and the image, or the error of one that cannot be read or needs more memory than the limit."""
    try:
        if view.memory is not None and isinstance(source, str | os.PathLike):
            check_decoding(Path(source), view.memory)
        return name, load_image(source, max_pixels=max_pixels)
    except (ImageError, MemoryLimitError) as error:
        return name, ImageError(name, getattr(error, "reason", str(error)))


def output_file(stem: Path, output: str) -> Path:
    """Return the path of an output: STEM.png, STEM_overlay.png or STEM_probabilities.npy."""
    return stem.with_name(f"{stem.name}{OUTPUTS[output]}")


def output_stems(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Choose a stem for the results of each image, so that no file replaces another result or an image.

    Args:
        paths: paths of the images.
        folder: folder of the results; it may contain the images.
    """
    taken = {path.resolve() for path in paths}
    stems = []
    for path in paths:
        names = itertools.chain([path.stem], (f"{path.stem}-{number}" for number in itertools.count(2)))
        stem = next(folder / name for name in names if not _output_files(folder / name) & taken)
        taken |= _output_files(stem)
        stems.append(stem)
    return stems


def _output_files(stem: Path) -> set[Path]:
    return {output_file(stem, output).resolve() for output in OUTPUTS}


def _result(model: SegmenterNetwork, source: str, labels: np.ndarray) -> SegmentationResult:
    labels = labels.astype(label_dtype(model), copy=False)
    return SegmentationResult(source, labels.shape, labels, model.config.classes, model.config.colours)


@contextmanager
def _labels(
    model: SegmenterNetwork, image: Image.Image, view: View, path: Path, stem: Path | None, probabilities: Path | None
) -> Iterator[np.ndarray]:
    """Yield the class of each pixel, and write the probabilities if their path is given.

    The label file of a tiled image is deleted only after the block, which writes the results.
    """
    if stem:
        stem.parent.mkdir(parents=True, exist_ok=True)
    if not needs_tiles(model, image, view):
        values = pixel_probabilities(model, image, view.scale_factors, view.flip)
        if probabilities:
            with atomic_write(probabilities) as part:
                np.save(part, values.numpy().astype(np.float16))
        yield values.argmax(0).numpy()
        return
    with tempfile.TemporaryDirectory() if stem is None else nullcontext(stem.parent) as folder:
        file = Path(folder) / f"{path.stem if stem is None else stem.name}_labels.npy"
        segment_to_file(model, image, file, view, probabilities)
        yield np.load(file)
        file.unlink()
        file.with_name(f"{file.name}.json").unlink()
