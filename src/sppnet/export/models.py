"""Export to ONNX files that use standard operators, accept any image size, and are verified before they appear."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sppnet import __version__
from sppnet.backbones.geometry import Axis
from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.same_padding import integer_padding_in_export
from sppnet.classify.model import Classifier
from sppnet.errors import import_optional
from sppnet.export.verify import FORMAT, Verification, verify
from sppnet.io.remote import atomic_write
from sppnet.ops import library
from sppnet.ops.levels import Level, parse_levels
from sppnet.ops.regions import box_windows

_MAX_BYTES = 2**31 - 2**24  # maximum size of a Protocol Buffers file, minus room for the graph


class ExportError(RuntimeError):
    """Raised if a network cannot be exported, or if the file did not match the model and was removed."""


def export_classifier(
    model: Classifier, path: str | Path, with_preprocessing: bool = False, *, num_sizes: int = 50
) -> Verification:
    """Export the classifier to an ONNX file, which is written only if it matches the model.

    The input `image` is the normalized float32 batch (N, 3, H, W) of :meth:`Classifier.forward` or, with
    preprocessing, uint8 RGB pixels (N, H, W, 3). The output is `logits` (N, classes). N, H and W are dynamic.

    Args:
        model: classifier with float32 weights and the rule ``adaptive``.
        path: output file; an existing file is replaced.
        with_preprocessing: whether to include scaling and normalization in the graph.
        num_sizes: number of image sizes to check, see :func:`verify`.

    Raises:
        ModuleNotFoundError: the extra `export` is not installed.
        TypeError: the weights are not float32.
        ValueError: a rule other than ``adaptive``, an invalid path, or weights larger than the 2 GB limit of a file.
        ExportError: the network does not take all sizes, torch cannot export it with dynamic sizes, or the file does
            not match the model.
    """
    _require_modules()
    from sppnet.ops.onnx import check_rule

    check_rule(model.config.rule)
    backbone = model.backbone
    if backbone.multiple > 1:
        raise ExportError(
            f"backbone: expected a network for images of any size, got {backbone.name}, which takes multiples of"
            f" {backbone.multiple} pixels; use a convolutional network"
        )
    side = [smallest + extra for smallest, extra in zip(backbone.geometry.smallest(), (196, 134), strict=True)]
    if with_preprocessing:
        axes = {0: "batch", 1: "height", 2: "width"}
        image = torch.zeros(2, *side, 3, dtype=torch.uint8, device=model.device)
    else:
        axes = {0: "batch", 2: "height", 3: "width"}
        image = torch.zeros(2, 3, *side, device=model.device)
    metadata = {
        "task": "classify",
        "preprocessing": with_preprocessing,
        "layout": "NHWC" if with_preprocessing else "NCHW",
        "colour": "RGB",
        "range": "0..255" if with_preprocessing else "(pixel / 255 - mean) / std",
        "classes": model.config.classes,
        "resize": model.config.resize,
        "max_pixels": model.config.max_pixels,
        "interpolation": backbone.interpolation,
        "smallest": backbone.geometry.smallest(),
        "largest": None,
        **_metadata(model, model.config.levels),
    }
    network = _Network(model, with_preprocessing)
    return _write_checked(network, {"image": image}, {"image": axes}, "logits", metadata, model, Path(path), num_sizes)


def export_regions(
    model: Classifier, path: str | Path, levels: Sequence[Level] | None = None, *, num_sizes: int = 50
) -> Verification:
    """Export pyramid pooling of boxes on the model's feature maps to an ONNX file, and verify it.

    The inputs are `map` (N, C, H, W) float32; `boxes` (K, 4) float32, xyxy edges in pixels of the network's input; and
    `images` (K,) int64, the index of each box's map. If the position of the first cell depends on the image size, as
    with TensorFlow's SAME padding, there is also `size` (2,) int64, the (height, width) of the network's input. The
    output is `vectors` (K, C * bins), equal to :func:`sppnet.region_pyramid_pool` with the rule ``paper``. N, K, H and
    W are dynamic. The graph cannot validate its input: the output is undefined for boxes with swapped or non-finite
    edges and for map indices that are out of range.

    Args:
        model: classifier that defines stride, offset, channels and reduction.
        path: output file; an existing file is replaced.
        levels: pyramid levels; None for those of the model.
        num_sizes: number of image sizes to check, see :func:`verify`.

    Raises:
        ModuleNotFoundError, ExportError: as for :func:`export_classifier`.
        TypeError, ValueError: as for :func:`export_classifier`, and invalid levels.
    """
    _require_modules()
    levels = model.config.levels if levels is None else tuple(levels)
    encoder = _Regions(model, levels)
    inputs = {
        "map": torch.zeros(2, model.backbone.channels, 11, 9),
        "boxes": torch.tensor([[0.0, 0.0, 50.0, 40.0]] * 3),
        "images": torch.zeros(3, dtype=torch.long),
    }
    axes: dict[str, dict[int, Any]] = {
        "map": {0: "batch", 2: "rows", 3: "columns"},
        "boxes": {0: "boxes"},
        "images": {0: torch.export.Dim.DYNAMIC},  # torch infers that it equals that of boxes
    }
    if encoder.depends_on_size:
        inputs["size"] = torch.tensor([300, 200])
        axes["size"] = {}
    metadata = {"task": "regions", "cell_rule": "paper", **_metadata(model, levels)}
    return _write_checked(encoder, inputs, axes, "vectors", metadata, model, Path(path), num_sizes)


def _require_modules() -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(module, "ONNX files")


class _Network(nn.Module):
    """Classifier without the argument checks, which need concrete sizes and cannot be traced."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Classifier, with_preprocessing: bool) -> None:
        super().__init__()
        self.model = model
        self.with_preprocessing = with_preprocessing
        self.register_buffer("mean", torch.tensor(model.backbone.mean, device=model.device).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(model.backbone.std, device=model.device).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        backbone, config = self.model.backbone, self.model.config
        if self.with_preprocessing:
            image = (image.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        grids = parse_levels(config.levels)
        maps = backbone._maps(backbone.network, image, self.model.stages)
        vectors = [library.pool(data, None, grids, config.rule, config.reduce) for data, _ in maps]
        logits: Tensor = self.model.head(self.model.concatenate(vectors))
        return logits


class _Regions(nn.Module):
    """Pyramid pooling of boxes on feature maps."""

    def __init__(self, model: Classifier, levels: Sequence[Level]) -> None:
        super().__init__()
        geometry = model.backbone.geometry
        self.grids = parse_levels(levels)
        self.reduce = model.config.reduce
        self.scale = 1 / geometry.stride[0], 1 / geometry.stride[1]
        self.offsets = [torch.tensor(_offsets(axis)) for axis in (geometry.vertical, geometry.horizontal)]

    @property
    def depends_on_size(self) -> bool:
        return any(len(offsets) > 1 for offsets in self.offsets)

    def forward(self, x: Tensor, boxes: Tensor, images: Tensor, size: Tensor | None = None) -> Tensor:
        if size is None:
            down, right = self.offsets
        else:
            down, right = (table[size[i : i + 1] % len(table)] for i, table in enumerate(self.offsets))
        shifted = boxes.double() - torch.cat((right, down, right, down))
        windows = box_windows(shifted, images, (x.shape[2], x.shape[3]), self.scale, (0.0, 0.0), "paper")
        return library.pool(x, windows, self.grids, "adaptive", self.reduce)


def _offsets(axis: Axis) -> list[float]:
    """Return the center of the first cell for each image side modulo the stride, or one number if all are equal.

    SAME padding of a layer depends on its input side modulo its stride, so the offset depends on the image side modulo
    the total stride.
    """
    begin = axis.stride * 64
    offsets = [axis.first_centre(side) for side in range(begin, begin + axis.stride)]
    return offsets if len(set(offsets)) > 1 else offsets[:1]


def _metadata(model: Classifier, levels: Sequence[Level]) -> dict[str, Any]:
    backbone = model.backbone
    offsets = [_offsets(axis) for axis in (backbone.geometry.vertical, backbone.geometry.horizontal)]
    return {
        "format": FORMAT,
        "sppnet": __version__,
        "backbone": backbone.name,
        "stage": backbone.stage,
        "mean": backbone.mean,
        "std": backbone.std,
        "levels": levels,
        "reduce": model.config.reduce,
        "stride": backbone.geometry.stride,
        "offset": None if max(map(len, offsets)) > 1 else [table[0] for table in offsets],
    }


def _write_checked(
    module: nn.Module,
    inputs: dict[str, Tensor],
    axes: dict[str, dict[int, Any]],
    output: str,
    metadata: dict[str, Any],
    model: Classifier,
    path: Path,
    num_sizes: int,
) -> Verification:
    if model.dtype != torch.float32:
        raise TypeError(f"model: expected float32 weights, got {model.dtype}; convert with .float()")
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > _MAX_BYTES:
        raise ValueError(f"model: expected at most 2 GB of weights, got {size / 1e9:.1f} GB; use a smaller head")
    if num_sizes < 1:
        raise ValueError(f"num_sizes: expected at least 1, got {num_sizes}")
    if not path.name or path.is_dir():
        raise ValueError(f"path: expected a file name such as model.onnx, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"path: expected a file in an existing folder, got {path}")
    with atomic_write(path) as part:
        _write(module, inputs, axes, output, metadata, part)
        report = verify(part, model, num_sizes)
        if report.mismatches:
            raise ExportError(f"{path} was not written: {report.summary()}")
    return replace(report, file=str(path))


def _write(
    module: nn.Module,
    inputs: dict[str, Tensor],
    axes: dict[str, dict[int, Any]],
    output: str,
    metadata: dict[str, Any],
    path: Path,
) -> None:
    from sppnet.ops.onnx import translations

    try:
        with evaluation_mode(module), torch.no_grad(), integer_padding_in_export():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=tuple(axes.values()),
                custom_translation_table=translations(),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"torch cannot export this network with dynamic image sizes: {_root_cause(error)}") from error
    if program is None:  # allowed by the type, but only the legacy exporter returns None
        raise ExportError("torch.onnx.export returned no program")
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    program.save(path, external_data=False)


def _root_cause(error: BaseException) -> str:
    """Return the first line of the innermost exception; the outer ones only name the exporter's steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]
