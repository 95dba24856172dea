"""A model as an ONNX file for every image size, in standard operators; it is checked before it gets its name."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sppnet.backbones.geometry import Axis
from sppnet.backbones.same_padding import integers_in_export
from sppnet.classify.model import Classifier
from sppnet.export.verify import FORMAT, Verification, require, verify
from sppnet.ops import library
from sppnet.ops.bins import Level, parse_levels
from sppnet.ops.regions import box_windows

_MOST_BYTES = 2**31 - 2**24  # what one file of protocol buffers holds, less room for the graph


class ExportError(RuntimeError):
    """A network that cannot be written, or a file that did not pass the check and was removed."""


def export_classifier(
    model: Classifier, path: str | Path, with_preprocessing: bool = False, *, sizes: int = 50
) -> Verification:
    """Write the classifier as an ONNX file and check it; the file appears only if it is right.

    Its input is `image`: the normalised batch (N, 3, H, W) of :meth:`Classifier.forward`, float32; or, with
    preprocessing, decoded pixels (N, H, W, 3), uint8 RGB. Its output is `logits` (N, classes). N, H and W are free.

    Args:
        model: of float32 weights and the rule ``adaptive``.
        path: of the file; one that is there is replaced.
        with_preprocessing: put scaling and normalisation into the file.
        sizes: number of sizes at which the file is checked, see :func:`verify`.

    Raises:
        ModuleNotFoundError: the extra `export` is not installed.
        TypeError: weights that are not float32.
        ValueError: a rule other than ``adaptive``, or weights beyond the 2 GB of one file.
        ExportError: torch cannot follow the network at every size, or the check failed.
    """
    require("onnx", "onnxscript", "onnxruntime")
    from sppnet.ops.onnx import check_rule

    check_rule(model.config.rule)
    backbone = model.backbone
    side = [smallest + more for smallest, more in zip(backbone.geometry.smallest(), (196, 134), strict=True)]
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
    return _write_checked(network, {"image": image}, {"image": axes}, "logits", metadata, model, Path(path), sizes)


def export_regions(
    model: Classifier, path: str | Path, levels: Sequence[Level] | None = None, *, sizes: int = 50
) -> Verification:
    """Write the pyramid of boxes of the model's feature maps as an ONNX file and check it.

    Its inputs are `map` (N, C, H, W) float32, `boxes` (K, 4) float32, xyxy in pixels of the network's input, and
    `images` (K,) int64, the map of each box. Where the first cell's place depends on the image's size, as with
    TensorFlow's SAME padding, there is `size` (2,) int64 too: height and width of the network's input. Its output is
    `vectors` (K, C * bins), those of :func:`sppnet.region_pyramid_pool` under the rule ``paper``. N, K, H and W are
    free. A file cannot refuse boxes that are out of order or not finite, or a map that does not exist; the answer is
    then undefined.

    Args:
        model: its backbone gives stride, offset and channels, its configuration the reduction.
        path: of the file; one that is there is replaced.
        levels: of the pyramid; None for the model's own.
        sizes: number of sizes at which the file is checked, see :func:`verify`.

    Raises:
        ModuleNotFoundError, ExportError: as :func:`export_classifier`.
        TypeError, ValueError: wrong levels.
    """
    require("onnx", "onnxscript", "onnxruntime")
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
        "images": {0: torch.export.Dim.DYNAMIC},  # torch finds that it is that of boxes
    }
    if encoder.depends_on_size:
        inputs["size"] = torch.tensor([300, 200])
        axes["size"] = {}
    metadata = {"task": "regions", "cell_rule": "paper", **_metadata(model, levels)}
    return _write_checked(encoder, inputs, axes, "vectors", metadata, model, Path(path), sizes)


class _Network(nn.Module):
    """The classifier without its checks, which ask for sizes that are not known while a graph is made."""

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
        (data,) = backbone._maps(backbone.network, image, (backbone.stage,))
        logits: Tensor = self.model.head(
            library.pool(data, None, parse_levels(config.levels), config.rule, config.reduce)
        )
        return logits


class _Regions(nn.Module):
    """Maps and boxes in, vectors out."""

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
            down, right = (part[size[i : i + 1] % len(part)] for i, part in enumerate(self.offsets))
        moved = boxes.double() - torch.cat((right, down, right, down))
        windows = box_windows(moved, images, (x.shape[2], x.shape[3]), self.scale, (0.0, 0.0), "paper")
        return library.pool(x, windows, self.grids, "adaptive", self.reduce)


def _offsets(axis: Axis) -> list[float]:
    """The first cell's centre by the image's side modulo the stride; one number where it does not depend on that.

    SAME padding depends on what its layer's side leaves when divided by its stride, so all of them together on what
    the image's side leaves when divided by the map's.
    """
    begin = axis.stride * 64
    offsets = [axis.first_centre(side) for side in range(begin, begin + axis.stride)]
    return offsets if len(set(offsets)) > 1 else offsets[:1]


def _metadata(model: Classifier, levels: Sequence[Level]) -> dict[str, Any]:
    from sppnet import __version__

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
        "offset": None if max(map(len, offsets)) > 1 else [part[0] for part in offsets],
    }


def _write_checked(
    module: nn.Module,
    inputs: dict[str, Tensor],
    axes: dict[str, dict[int, Any]],
    output: str,
    metadata: dict[str, Any],
    model: Classifier,
    path: Path,
    sizes: int,
) -> Verification:
    if model.dtype != torch.float32:
        raise TypeError(f"model: expected float32 weights; got {model.dtype}; .float() converts")
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > _MOST_BYTES:
        raise ValueError(f"model: its weights take {size / 1e9:.1f} GB; one ONNX file holds 2 GB; take a smaller head")
    if sizes < 1:
        raise ValueError(f"sizes: expected at least 1 size to check; got {sizes}")
    if not path.name or path.is_dir():
        raise ValueError(f"path: expected the name of a file, such as model.onnx; got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"path: no such folder: {path.parent}")
    part = path.with_name(path.name + ".part")
    try:
        _write(module, inputs, axes, output, metadata, part)
        report = verify(part, model, sizes)
        if report.mismatches:
            raise ExportError(f"{path} was not written: {report.summary()}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
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

    training = module.training
    try:
        with torch.no_grad(), integers_in_export():
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=tuple(axes.values()),
                custom_translation_table=translations(),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"torch cannot follow this network at every size: {_root(error)}") from error
    finally:
        module.train(training)
    if program is None:  # torch gives none to those who ask for its old exporter
        raise ExportError("torch gave no program")
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    program.save(path, external_data=False)


def _root(error: BaseException) -> str:
    """The first line of the exception at the bottom: those above it repeat what the exporter was doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]
