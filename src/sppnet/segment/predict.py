"""Segmentation of image files, with results as masks, overlays and probabilities."""

import itertools
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sppnet.data.images import MAX_PIXELS, load_image
from sppnet.errors import ImageError, check_choice
from sppnet.inference.memory import check_decoding
from sppnet.segment.model import Segmenter
from sppnet.segment.pictures import count_labels, write_labels, write_overlay, write_probabilities
from sppnet.segment.tiles import segment_to_file
from sppnet.segment.views import View, pixel_probabilities

OUTPUTS = {"palette": ".png", "overlay": "_overlay.png", "probabilities": "_probabilities.npy"}


@dataclass(frozen=True)
class SegmentationResult:
    """Result for an image.

    Attributes:
        source: path of the image.
        size: (height, width) in pixels, after applying the EXIF orientation.
        tiles: number of tiles; 1 for the whole image.
        classes: share of the pixels by class, without absent classes.
        files: paths of the written files, by output.
    """

    source: str
    size: tuple[int, int]
    tiles: int
    classes: dict[str, float]
    files: dict[str, str]


def segment_file(
    model: Segmenter,
    path: Path,
    stem: Path | None,
    outputs: Sequence[str] = ("palette", "overlay"),
    view: View | None = None,
    max_pixels: int = MAX_PIXELS,
) -> SegmentationResult:
    """Segment an image file and write the results.

    The labels of a tiled image are written tile by tile to a file next to the results; if the process is killed, the
    same call continues from it.

    Args:
        model: segmenter in evaluation mode.
        path: path of the image.
        stem: path of the results without suffix, see :func:`output_file`; None to write nothing.
        outputs: results to write: ``palette`` (class indices with a palette), ``overlay`` (the image blended with the
            class colors) and ``probabilities`` (float16 of shape (classes, height, width)).
        view: scales, tiles and memory limit; None for the whole image in one pass.
        max_pixels: see :func:`sppnet.data.images.load_image`.

    Raises:
        sppnet.ImageError: the image cannot be read, or it needs more memory than the limit.
        ValueError: an output is unknown.
    """
    for output in outputs:
        check_choice("output", output, OUTPUTS)
    view = view or View()
    try:
        return _segment_file(model, path, stem, outputs, view, max_pixels)
    except ImageError:
        raise
    except ValueError as error:  # such as too little memory for this image; the next one may be smaller
        raise ImageError(str(path), str(error)) from error


def _segment_file(
    model: Segmenter, path: Path, stem: Path | None, outputs: Sequence[str], view: View, max_pixels: int
) -> SegmentationResult:
    if view.memory is not None:
        check_decoding(path, view.memory)
    image = load_image(path, max_pixels=max_pixels)
    if stem is not None:
        stem.parent.mkdir(parents=True, exist_ok=True)
    probabilities_file = output_file(stem, "probabilities") if stem and "probabilities" in outputs else None
    if not view.in_tiles(model, image):
        probabilities = pixel_probabilities(model, image, view.scales, view.flip)
        if probabilities_file:
            write_probabilities(probabilities, probabilities_file)
        return _finish(model, image, path, probabilities.argmax(0).numpy(), 1, stem, outputs, probabilities_file)
    with tempfile.TemporaryDirectory() if stem is None else nullcontext(stem.parent) as folder:
        file = Path(folder) / f"{path.stem if stem is None else stem.name}_labels.npy"
        tiled = segment_to_file(
            model,
            image,
            file,
            memory=view.memory if view.tile is None else None,
            tile=view.tile,
            overlap=view.overlap,
            global_context=view.global_context,
            probabilities=probabilities_file,
        )
        labels = np.load(file, mmap_mode="r")
        answer = _finish(model, image, path, labels, tiled.tiles, stem, outputs, probabilities_file)
        del labels
        file.unlink()
        file.with_name(f"{file.name}.json").unlink()
    return answer


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
        stem = next(folder / name for name in names if not _answer_files(folder / name) & taken)
        taken |= _answer_files(stem)
        stems.append(stem)
    return stems


def _answer_files(stem: Path) -> set[Path]:
    return {output_file(stem, output).resolve() for output in OUTPUTS}


def _finish(
    model: Segmenter,
    image: Image.Image,
    path: Path,
    labels: np.ndarray,
    tiles: int,
    stem: Path | None,
    outputs: Sequence[str],
    probabilities: Path | None,
) -> SegmentationResult:
    config = model.config
    files = {"probabilities": str(probabilities)} if probabilities else {}
    if stem and "palette" in outputs:
        file = output_file(stem, "palette")
        write_labels(labels, file, config.colours)
        files["palette"] = str(file)
    if stem and "overlay" in outputs:
        file = output_file(stem, "overlay")
        write_overlay(image, labels, file, config.classes, config.colours)
        files["overlay"] = str(file)
    counts = count_labels(labels, len(config.classes))
    shares = {name: int(count) / labels.size for name, count in zip(config.classes, counts, strict=True) if count}
    return SegmentationResult(str(path), (image.height, image.width), tiles, shares, files)
