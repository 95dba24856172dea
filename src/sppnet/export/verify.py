"""Verification of ONNX files: comparison of onnxruntime with torch at random image sizes."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sppnet.backbones.modes import evaluation_mode
from sppnet.classify.model import Classifier
from sppnet.data.images import to_tensor
from sppnet.errors import import_optional
from sppnet.ops.regions import region_pyramid_pool
from sppnet.progress import track

FORMAT = 1
_LINE = 600  # length in pixels of the images that are as thin as the network accepts
_LISTED = 10


@dataclass(frozen=True)
class Mismatch:
    """An image size at which the file and the model differ.

    Attributes:
        size: (height, width) of the images.
        images: number of images.
        error: largest difference relative to the model's largest absolute output; infinite without a valid output.
        reason: description of the problem.
    """

    size: tuple[int, int]
    images: int
    error: float
    reason: str


@dataclass(frozen=True)
class Verification:
    """Result of the verification of a file.

    Attributes:
        file: path of the file.
        task: ``classify`` or ``regions``.
        sizes: number of sizes that were compared.
        tolerance: largest allowed error.
        worst: largest error, see `Mismatch`.
        worst_size: (height, width) with the largest error.
        mismatches: sizes with an error above the tolerance.
        seconds: duration of the verification.
    """

    file: str
    task: str
    sizes: int
    tolerance: float
    worst: float
    worst_size: tuple[int, int]
    mismatches: tuple[Mismatch, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types, with None for infinite differences."""
        content = asdict(self)
        for part, name in ((content, "worst"), *((mismatch, "error") for mismatch in content["mismatches"])):
            part[name] = part[name] if math.isfinite(part[name]) else None
        return content

    def summary(self) -> str:
        """Return one line that lists the mismatches."""
        if not self.mismatches:
            return f"file and model agree at all {self.sizes} sizes"
        items = [f"{item.size[0]} x {item.size[1]}: {item.reason}" for item in self.mismatches[:_LISTED]]
        more = len(self.mismatches) - len(items)
        rest = f"; and {more} more" if more else ""
        return f"file and model differ at {len(self.mismatches)} of {self.sizes} sizes: {'; '.join(items)}{rest}"


def verify(
    path: str | Path, model: Classifier, num_sizes: int = 200, seed: int = 0, tolerance: float = 1e-4
) -> Verification:
    """Compare the file in onnxruntime with the model in torch, at random image sizes.

    The first sizes are edge cases: the smallest that the network accepts, and images 600 pixels long and as thin as
    possible. The others have side ratios up to 7; most are small, every tenth has up to 250,000 pixels. Batches have
    1 to 3 images. Files for regions get random maps and 0 to 20 random boxes per map, some outside the image.

    Args:
        path: file written by :mod:`sppnet.export.models`.
        model: classifier that was exported.
        num_sizes: number of sizes, at least 1.
        seed: random seed of sizes, images and boxes.
        tolerance: largest allowed difference, relative to the model's largest absolute output.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
        ValueError: the file was not written by this package, or was exported from another model.
    """
    if num_sizes < 1:
        raise ValueError(f"num_sizes: expected at least 1, got {num_sizes}")
    session, metadata = open_session(Path(path))
    _check_model(Path(path), metadata, model)
    compare = _compare_regions if metadata["task"] == "regions" else _compare_images
    rng = np.random.default_rng(seed)
    started = time.perf_counter()
    with evaluation_mode(model):
        comparisons = [
            compare(session, metadata, model, rng, size)
            for size in track(_draw_sizes(rng, num_sizes, model.backbone.geometry.smallest()), "checking", num_sizes)
        ]
    worst = max(comparisons, key=lambda comparison: comparison.error)
    return Verification(
        str(path),
        metadata["task"],
        num_sizes,
        tolerance,
        worst.error,
        worst.size,
        tuple(comparison for comparison in comparisons if not comparison.error <= tolerance),
        time.perf_counter() - started,
    )


def open_session(path: Path, threads: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Open an onnxruntime session on the CPU, and return it with the metadata of the file.

    Args:
        path: file written by :mod:`sppnet.export.models`.
        threads: number of threads of a run; None for the number that torch uses.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
        ValueError: the file does not exist, is damaged, or was not written by this version of the package.
    """
    onnxruntime, errors = import_optional("onnxruntime", "ONNX files"), _errors()
    if not path.is_file():
        raise ValueError(f"file: expected an existing file, got {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.enable_mem_pattern = False  # it would keep a memory plan for every input size
    options.log_severity_level = 4  # errors are raised, not logged
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf) as error:
        raise ValueError(f"file: expected an ONNX file, got {path}; onnxruntime cannot load it: {error}") from error
    try:
        metadata = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    except ValueError:
        metadata = {}
    if metadata.get("task") not in ("classify", "regions") or "format" not in metadata:
        raise ValueError(f"file: expected a file written by `sppnet export`, got {path}")
    if metadata["format"] != FORMAT:
        raise ValueError(f"file: expected format {FORMAT}, got {metadata['format']!r} in {path}; export it again")
    return session, metadata


def _errors() -> Any:
    return import_optional("onnxruntime.capi.onnxruntime_pybind11_state", "ONNX files")


def _check_model(path: Path, metadata: dict[str, Any], model: Classifier) -> None:
    if metadata["task"] == "classify" and metadata["classes"] != list(model.config.classes):
        names, own = metadata["classes"], model.config.classes
        raise ValueError(
            f"run: expected the run exported to {path}, with {len(names)} classes ({', '.join(names[:3])}, ...), got"
            f" {len(own)} classes ({', '.join(own[:3])}, ...)"
        )
    backbone = model.backbone
    if (metadata["backbone"], metadata["stage"]) != (backbone.name, backbone.stage):
        raise ValueError(
            f"run: expected the run exported to {path}, with feature maps of {metadata['backbone']}, stage"
            f" {metadata['stage']}, got {backbone.name}, stage {backbone.stage}"
        )


def _draw_sizes(rng: np.random.Generator, count: int, smallest: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield image sizes (height, width), edge cases first."""
    height, width = smallest
    edge_cases = [smallest, (height, max(_LINE, width)), (max(_LINE, height), width), (height + 1, width + 2)]
    yield from edge_cases[:count]
    for number in range(len(edge_cases), count):
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
    """Return one to three RGB images (N, H, W, 3) made of squares of random color, 1 to 16 pixels wide."""
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
        on_bad="clip",  # as in the graph, which cannot raise errors
    )
    return _compare(session, inputs, expected, size)


def _draw_boxes(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return boxes (K, 4), xyxy, half of them with integer edges; some are partly or entirely outside the image."""
    height, width = size
    corners = rng.uniform(-0.4, 1.4, (int(rng.choice([0, 1, 3, 20])), 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    boxes[::2] = boxes[::2].round()
    return boxes.astype(np.float32)


def _compare(session: Any, inputs: dict[str, NDArray[Any]], expected: Tensor, size: tuple[int, int]) -> Mismatch:
    """Run the file and return the difference from the model's output as a `Mismatch`, even if it is small."""
    errors = _errors()
    images, target = len(next(iter(inputs.values()))), expected.cpu().numpy()
    try:
        (output,) = session.run(None, inputs)
    except (errors.Fail, errors.InvalidArgument, errors.NotImplemented, errors.RuntimeException) as error:
        return Mismatch(size, images, math.inf, f"onnxruntime failed: {error}")
    if output.shape != target.shape:
        return Mismatch(size, images, math.inf, f"output shape {output.shape}, expected {target.shape}")
    if not target.size:
        return Mismatch(size, images, 0.0, "")
    worst = float(np.abs(output - target).max()) / max(float(np.abs(target).max()), 1e-30)
    return Mismatch(size, images, math.inf if math.isnan(worst) else worst, f"relative difference {worst:.2g}")
