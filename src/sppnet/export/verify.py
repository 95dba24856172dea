"""The proof that an ONNX file is right: onnxruntime beside torch at sizes drawn anew."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sppnet.classify.model import Classifier
from sppnet.console import track
from sppnet.data.images import to_tensor
from sppnet.ops.regions import region_pyramid_pool

FORMAT = 1
_LINE = 600
_LISTED = 10


@dataclass(frozen=True)
class Mismatch:
    """A size at which the file and the model disagree.

    Attributes:
        size: (height, width) of the images.
        images: how many of them.
        error: largest difference over the largest absolute number of the model; infinite where there is none.
        reason: what happened, for people.
    """

    size: tuple[int, int]
    images: int
    error: float
    reason: str


@dataclass(frozen=True)
class Verification:
    """What the check of a file found.

    Attributes:
        file: the file.
        task: ``classify`` or ``regions``.
        sizes: number of sizes that were tried.
        tolerance: largest error that passes.
        worst: largest error, relative to the largest absolute number of the model at that size.
        worst_size: (height, width) where it was.
        mismatches: every size that failed.
        seconds: that it took.
    """

    file: str
    task: str
    sizes: int
    tolerance: float
    worst: float
    worst_size: tuple[int, int]
    mismatches: tuple[Mismatch, ...]
    seconds: float

    def summary(self) -> str:
        """In one line: whether it is right, or at which sizes it is wrong and by how much."""
        if not self.mismatches:
            return f"right at all {self.sizes} sizes"
        lines = [f"{one.size[0]} x {one.size[1]}: {one.reason}" for one in self.mismatches[:_LISTED]]
        more = len(self.mismatches) - len(lines)
        rest = f"; and {more} more" if more else ""
        return f"wrong at {len(self.mismatches)} of {self.sizes} sizes: {'; '.join(lines)}{rest}"


def verify(
    path: str | Path, model: Classifier, sizes: int = 200, seed: int = 0, tolerance: float = 1e-4
) -> Verification:
    """Run the file in onnxruntime against the model in torch, at sizes drawn anew.

    Among them are the smallest size that the network takes, a line of 600 pixels in each direction, sides that
    differ up to seven times, and batches of 1 to 3; most are small, each tenth has up to a quarter of a million pixels.
    For a region encoder the maps are random, and so are 0 to 20 boxes, some of them outside the image.

    Args:
        path: a file that :mod:`sppnet.export.models` wrote; its metadata say whether it is a classifier.
        model: the one that it was made from.
        sizes: how many, >= 1.
        seed: of sizes, images and boxes.
        tolerance: largest difference that passes, relative to the largest absolute number of the model.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
        ValueError: not such a file, or one of another model.
    """
    if sizes < 1:
        raise ValueError(f"sizes: expected at least 1 size to check; got {sizes}")
    require("onnxruntime")
    session, metadata = open_session(Path(path))
    _check_model(Path(path), metadata, model)
    compare = _compare_regions if metadata["task"] == "regions" else _compare_images
    rng = np.random.default_rng(seed)
    training, begun = model.training, time.perf_counter()
    model.eval()
    try:
        found = [
            compare(session, metadata, model, rng, size)
            for size in track(_draw_sizes(rng, sizes, model.backbone.geometry.smallest()), "checking", sizes)
        ]
    finally:
        model.train(training)
    worst = max(found, key=lambda one: one.error)
    return Verification(
        str(path),
        metadata["task"],
        sizes,
        tolerance,
        worst.error,
        worst.size,
        tuple(one for one in found if not one.error <= tolerance),
        time.perf_counter() - begun,
    )


def require(*modules: str) -> None:
    """Refuse where the extra `export` is not installed.

    Raises:
        ModuleNotFoundError: naming the modules that are missing and the extra.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'ONNX files need {", ".join(missing)}: pip install "sppnet[export]"')


def open_session(path: Path, threads: int | None = None) -> tuple[Any, dict[str, Any]]:
    """A session of onnxruntime on the CPU, for any sizes, and the metadata of the file.

    Args:
        path: of a file that :mod:`sppnet.export.models` wrote.
        threads: of one run; None for as many as torch has.

    Raises:
        ValueError: no such file.
    """
    import onnxruntime  # type: ignore[import-untyped]
    from onnxruntime.capi import onnxruntime_pybind11_state as errors  # type: ignore[import-untyped]

    if not path.is_file():
        raise ValueError(f"file: no such file: {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.enable_mem_pattern = False  # it keeps a plan for each size that was ever seen
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf) as error:
        raise ValueError(f"file: {path} is not an ONNX file that onnxruntime reads: {error}") from error
    try:
        metadata = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    except ValueError:
        metadata = {}
    if metadata.get("task") not in ("classify", "regions") or "format" not in metadata:
        raise ValueError(f"file: {path} was not written by `sppnet export`: its metadata name no task of ours")
    if metadata["format"] != FORMAT:
        raise ValueError(f"file: {path} has format {metadata['format']!r}; this version reads {FORMAT}")
    return session, metadata


def _check_model(path: Path, metadata: dict[str, Any], model: Classifier) -> None:
    if metadata["task"] == "classify" and metadata["classes"] != list(model.config.classes):
        names, own = metadata["classes"], model.config.classes
        raise ValueError(
            f"run: {path} is of another run: it has {len(names)} classes ({', '.join(names[:3])}, ...), the run has"
            f" {len(own)} ({', '.join(own[:3])}, ...)"
        )
    backbone = model.backbone
    if (metadata["backbone"], metadata["stage"]) != (backbone.name, backbone.stage):
        raise ValueError(
            f"run: {path} is of another run: its maps are those of {metadata['backbone']}, stage {metadata['stage']};"
            f" the run's are those of {backbone.name}, stage {backbone.stage}"
        )


def _draw_sizes(rng: np.random.Generator, count: int, smallest: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Sizes (height, width), the awkward ones first."""
    height, width = smallest
    corners = [smallest, (height, max(_LINE, width)), (max(_LINE, height), width), (height + 1, width + 2)]
    yield from corners[:count]
    for number in range(len(corners), count):
        pixels = rng.uniform(60_000, 250_000) if number % 10 == 9 else math.exp(rng.uniform(*np.log((1_000, 40_000))))
        ratio = math.exp(rng.uniform(-2, 2))
        yield max(height, round((pixels * ratio) ** 0.5)), max(width, round((pixels / ratio) ** 0.5))


def _compare_images(
    session: Any, metadata: dict[str, Any], model: Classifier, rng: np.random.Generator, size: tuple[int, int]
) -> Mismatch:
    pixels = _draw_images(rng, size)
    images = torch.stack([to_tensor(Image.fromarray(p), model.backbone.mean, model.backbone.std) for p in pixels])
    with torch.inference_mode():
        expected = model(images.to(model.device))
    return _compare(session, {"image": pixels if metadata["preprocessing"] else images.numpy()}, expected, size)


def _draw_images(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One to three images (N, H, W, 3), RGB: squares of one colour, of 1 to 16 pixels a side."""
    count = int(rng.integers(1, 4)) if size[0] * size[1] < 20_000 else 1
    side = int(rng.integers(1, 17))
    squares = rng.integers(0, 256, (count, -(-size[0] // side), -(-size[1] // side), 3), dtype=np.uint8)
    return squares.repeat(side, 1).repeat(side, 2)[:, : size[0], : size[1]]


def _compare_regions(
    session: Any, metadata: dict[str, Any], model: Classifier, rng: np.random.Generator, size: tuple[int, int]
) -> Mismatch:
    geometry = model.backbone.geometry
    count = int(rng.integers(1, 4))
    maps = rng.standard_normal((count, model.backbone.channels, *geometry.map_size(*size)), dtype=np.float32)
    boxes = [_draw_boxes(rng, size) for _ in range(count)]
    inputs: dict[str, NDArray[Any]] = {
        "map": maps,
        "boxes": np.concatenate(boxes),
        "images": np.repeat(np.arange(count), [len(part) for part in boxes]),
    }
    if len(session.get_inputs()) > len(inputs):
        inputs["size"] = np.array(size)
    expected = region_pyramid_pool(
        torch.from_numpy(maps),
        [torch.from_numpy(part) for part in boxes],
        [tuple(level) if isinstance(level, list) else level for level in metadata["levels"]],
        (1 / geometry.stride[0], 1 / geometry.stride[1]),
        metadata["cell_rule"],
        offset=geometry.offset(*size),
        reduce=metadata["reduce"],
        on_bad="clip",  # as graphs do, which cannot refuse
    )
    return _compare(session, inputs, expected, size)


def _draw_boxes(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes (K, 4), xyxy, half of them on whole pixels; they may lie partly or wholly outside the image."""
    height, width = size
    corners = rng.uniform(-0.4, 1.4, (int(rng.choice([0, 1, 3, 20])), 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    boxes[::2] = boxes[::2].round()
    return boxes.astype(np.float32)


def _compare(session: Any, inputs: dict[str, NDArray[Any]], expected: Tensor, size: tuple[int, int]) -> Mismatch:
    """The difference at one size; a `Mismatch` also where it is small."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    images, wanted = len(next(iter(inputs.values()))), expected.cpu().numpy()
    try:
        (found,) = session.run(None, inputs)
    except (errors.Fail, errors.InvalidArgument, errors.NotImplemented, errors.RuntimeException) as error:
        return Mismatch(size, images, math.inf, f"onnxruntime failed: {error}")
    if found.shape != wanted.shape:
        return Mismatch(size, images, math.inf, f"shape {found.shape} where the model has {wanted.shape}")
    if not wanted.size:
        return Mismatch(size, images, 0.0, "")
    off = float(np.abs(found - wanted).max()) / max(float(np.abs(wanted).max()), 1e-30)
    return Mismatch(size, images, math.inf if math.isnan(off) else off, f"off by {off:.2g} of the largest number")
