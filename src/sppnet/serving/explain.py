"""Explanations in image coordinates: contributions to a logit, pooled cells of a box, and live atrous taps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from sppnet.backbones.geometry import Geometry
from sppnet.backbones.modes import evaluation_mode
from sppnet.classify.model import Classifier
from sppnet.data.images import to_tensor
from sppnet.data.resize import Resize
from sppnet.errors import did_you_mean
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.drawing import cell_borders
from sppnet.layers.aspp import ASPP
from sppnet.layers.atrous import live_taps
from sppnet.ops.bins import clipped_edges
from sppnet.ops.levels import Level, Rule, parse_levels
from sppnet.segment.model import Segmenter

Edges = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Pass:
    """Forward pass of one image with the contributions to one logit.

    Attributes:
        index: index of the explained class.
        logits: logits of all classes.
        rest: logit minus the sum of all contributions.
        contributions: contribution of each element of the pooled vector.
        cells: contribution of each cell of the finest feature map.
        geometry: position of these cells.
    """

    index: int
    logits: Float[Tensor, " classes"]
    rest: float
    contributions: Float[Tensor, " d"]
    cells: Float[Tensor, "rows columns"]
    geometry: Geometry


def explain_image(model: Classifier, image: Image.Image, resize: Resize, label: str | None = None) -> dict[str, Any]:
    """Compute the contributions of bins and cells to the logit of a class.

    With the heads `plain` and `linear`, the logit is linear in the pooled vector, given the norm's scale for the image.
    Contributions and the bias, returned as `rest`, add up to the logit, and `exact` is true. With the head `fc`,
    contributions are gradient times vector, and `rest` is the remainder of the logit.

    Pooling passes the contribution of a bin on to its cells: to the maximum, or in equal weights to all cells of a
    mean. The contributions of the cells and `rest` also add up to the logit. If several maps are pooled, the result
    describes the cells of the finest one, which share the contributions of coarser cells, and each bin of its pyramid
    has the sum of the contributions of the same bin of all maps.

    Args:
        model: classifier; it is in evaluation mode during the call.
        image: RGB image as returned by :func:`sppnet.data.images.load_image`.
        resize: size policy that determines the network input.
        label: class name; None: the predicted class.

    Returns:
        Dictionary of `label`, `score` (probability), `logit`, `rest`, `exact`; `size` and `network_size`,
        (height, width) in pixels; `seen`, the part of the photograph in the network input; `levels` with their `bins`
        in row-major order; and `cells`, values in row-major order with the edges `x` and `y`. Boxes and edges are in
        pixels of the photograph.

    Raises:
        ValueError: the class is unknown, or the image is too small for the network.
    """
    config = model.config
    index = None if label is None else class_index(config.classes, label)
    resized = resize(image, model.backbone.interpolation)
    with evaluation_mode(model):
        run = _run(model, resized, index)
    rows, columns = run.cells.shape
    seen = _seen(resize, image)
    y, x = _borders(run.geometry, (resized.height, resized.width), seen)
    levels = _levels(config.levels, (0, 0, columns, rows), y, x, config.rule)
    channels = [model.backbone.stage_info(stage).channels for stage in model.stages]
    parts = run.contributions.split([count * model.pool.bins for count in channels])
    sums = (_sum_channels(part, config.levels, count) for part, count in zip(parts, channels, strict=True))
    contributions = torch.stack(list(sums)).sum(0).tolist()
    for bin_, value in zip((bin_ for level in levels for bin_ in level["bins"]), contributions, strict=True):
        bin_["contribution"] = value
    return {
        "label": config.classes[run.index],
        "score": float(run.logits.softmax(0)[run.index]),
        "logit": float(run.logits[run.index]),
        "rest": run.rest,
        "exact": config.head != "fc",
        "size": [image.height, image.width],
        "network_size": [resized.height, resized.width],
        "seen": list(seen),
        "levels": levels,
        "cells": {"rows": rows, "columns": columns, "values": run.cells.flatten().tolist(), "x": x, "y": y},
    }


def explain_box(encoder: RegionEncoder, size: tuple[int, int], box: Float[Tensor, " 4"]) -> dict[str, Any]:
    """Compute the feature map cells that a box pools, and its bins, without running the network.

    Args:
        encoder: region encoder.
        size: (height, width) of the photograph in pixels.
        box: xyxy edges in pixels of the photograph; the box must overlap it.

    Returns:
        Dictionary of `size`; `scale`, `network_size` and `map_size` at which the box is pooled; `cells`, half-open
        (left, top, right, bottom); `levels` with their `bins` in row-major order; and the edges `x` and `y` of all
        cells of the map. Boxes and edges are in pixels of the photograph. With the rule ``roi_pool``, cells may be
        outside the map; a bin with no cells inside has no area.
    """
    pooled = encoder.cells(box, size)
    y, x = _borders(encoder.backbone.geometry, pooled.network_size, (0.0, 0.0, float(size[1]), float(size[0])))
    return {
        "size": list(size),
        "scale": pooled.scale,
        "network_size": list(pooled.network_size),
        "map_size": list(pooled.map_size),
        "cells": list(pooled.cells),
        "levels": _levels(encoder.levels, pooled.cells, y, x),
        "x": x,
        "y": y,
    }


def explain_taps(model: Segmenter, size: tuple[int, int]) -> dict[str, Any]:
    """Compute the share of live taps of each atrous rate, for a photograph processed in one pass.

    A tap of a 3x3 kernel is live at a cell if it reads from inside the feature map. The network does not run.

    Args:
        model: segmenter with ASPP.
        size: (height, width) of the photograph in pixels.

    Returns:
        Dictionary of `size`, `map_size` in cells, and `rates`. Each rate has `live`, the shares of the cells
        at which each of the nine taps is live, in row-major order, and their mean, `share`.

    Raises:
        ValueError: the model has no ASPP.
    """
    context = model.head.context
    if not isinstance(context, ASPP):
        raise ValueError(
            f"model: expected a segmenter with ASPP, got the head {model.config.head} with"
            f" context={model.config.context!r}"
        )
    geometry = model.backbone.geometry
    smallest = geometry.smallest()
    rows, columns = geometry.map_size(max(size[0], smallest[0]), max(size[1], smallest[1]))
    return {
        "size": list(size),
        "map_size": [rows, columns],
        "rates": [
            {
                "rate": rate,
                "share": live_taps(rate, (rows, columns)).share,
                "live": [down * across for down in _live_shares(rate, rows) for across in _live_shares(rate, columns)],
            }
            for rate in context.rates
        ],
    }


def _run(model: Classifier, image: Image.Image, index: int | None) -> _Pass:
    backbone, head = model.backbone, model.head
    x = to_tensor(image, backbone.mean, backbone.std).to(model.device, model.dtype)[None]
    with torch.inference_mode():
        features = model.maps(x.contiguous(memory_format=torch.channels_last))
    # The caller may be in inference mode, which disables gradients.
    with torch.inference_mode(mode=False), torch.enable_grad():
        maps = [part.data.clone().requires_grad_() for part in features]
        pooled = [model.pool(data) for data in maps]
        vector = model.concatenate(pooled).detach().requires_grad_()
        logits = head(vector)[0]
        index = int(logits.argmax()) if index is None else index
        slope, bias = _slope(head, vector, logits, index)
        lengths = [part.shape[1] for part in pooled]
        slopes = [
            part * scaled.norm() / original.detach().norm().clamp(min=1e-12)
            for part, scaled, original in zip(
                slope.split(lengths, 1), vector.detach().split(lengths, 1), pooled, strict=True
            )
        ]
        per_cell = torch.autograd.grad(pooled, maps, slopes)
    contributions = slope.cpu().double() * vector.detach().cpu().double()
    values = [
        (gradient.cpu().double() * data.detach().cpu().double())[0].sum(0)
        for gradient, data in zip(per_cell, maps, strict=True)
    ]
    finest = max(range(len(values)), key=lambda number: values[number].numel())
    cells = torch.stack([_spread(part, values[finest].shape) for part in values]).sum(0)
    geometry = backbone.stage_info(model.stages[finest]).geometry
    logits = logits.detach().cpu().double()
    rest = float(logits[index] - contributions.sum()) if bias is None else bias
    return _Pass(index, logits, rest, contributions[0], cells, geometry)


def _spread(cells: Float[Tensor, "rows columns"], shape: Sequence[int]) -> Float[Tensor, "h w"]:
    """Divide the contribution of each cell equally among the cells of a finer map that it covers."""
    for axis, size in enumerate(shape):
        index = torch.arange(size) * cells.shape[axis] // size
        counts = index.bincount(minlength=cells.shape[axis]).clamp(min=1)
        cells = (cells / counts.unsqueeze(1 - axis)).index_select(axis, index)
    return cells


def _slope(head: nn.Module, vector: Tensor, logits: Tensor, index: int) -> tuple[Tensor, float | None]:
    """Return the slope of a logit at the pooled vector, and its bias if slope * vector + bias equals the logit."""
    *_, last = (module for module in head.modules() if isinstance(module, nn.Linear))
    bias = float(last.bias[index].detach())
    if isinstance(head, nn.Linear):
        return last.weight[None, index].detach(), bias
    norm = next(head.children())
    if isinstance(norm, nn.RMSNorm):
        scale = (vector.detach().square().mean() + (norm.eps or 0)).rsqrt()
        return last.weight[None, index].detach() * scale, bias
    (slope,) = torch.autograd.grad(logits[index], vector)
    return slope, None


def _sum_channels(contributions: Tensor, levels: Sequence[Level], channels: int) -> Float[Tensor, " bins"]:
    """Sum the contributions over the channels, for the bins of all levels."""
    grids = parse_levels(levels)
    parts = contributions.split([channels * rows * columns for rows, columns in grids])
    return torch.cat([part.view(channels, -1).sum(0) for part in parts])


def _levels(
    levels: Sequence[Level], window: tuple[int, int, int, int], y: list[float], x: list[float], rule: Rule = "adaptive"
) -> list[dict[str, Any]]:
    """Return the bins of each level of a window of cells; `y` and `x` are the edges of the map's cells."""
    grids = parse_levels(levels)
    edges = clipped_edges(torch.tensor([window]), (len(y) - 1, len(x) - 1), grids, rule)[0].tolist()
    described = []
    for rows, columns in grids:
        down, across, edges = edges[:rows], edges[rows : rows + columns], edges[rows + columns :]
        boxes = [[x[left], y[top], x[right], y[bottom]] for top, bottom in down for left, right in across]
        described.append({"rows": rows, "columns": columns, "bins": [{"box": box} for box in boxes]})
    return described


def _borders(geometry: Geometry, network_size: tuple[int, int], seen: Edges) -> tuple[list[float], list[float]]:
    """Return the y edges of the map's rows and the x edges of its columns, in pixels of the photograph."""
    offset, cells = geometry.offset(*network_size), geometry.map_size(*network_size)
    y, x = cell_borders(cells, geometry.stride, offset, network_size, network_size)
    left, top, right, bottom = seen
    return (
        [top + edge * (bottom - top) / network_size[0] for edge in y],
        [left + edge * (right - left) / network_size[1] for edge in x],
    )


def _seen(resize: Resize, image: Image.Image) -> Edges:
    """Return the part of the photograph in the network input, xyxy in pixels of the photograph."""
    if resize.policy == "center-crop":
        return resize.crop_box(image.height, image.width)
    return 0.0, 0.0, float(image.width), float(image.height)


def _live_shares(rate: int, cells: int) -> tuple[float, float, float]:
    """Return the shares of the cells along one axis at which the three taps of that axis are live."""
    share = max(cells - rate, 0) / cells
    return share, 1.0, share


def class_index(classes: Sequence[str], label: str) -> int:
    """Return the index of a class in the logits.

    Raises:
        ValueError: the class is unknown; the message suggests similar names.
    """
    if label not in classes:
        hint = did_you_mean(label[:80], classes) or f"; for example {classes[0]}"
        raise ValueError(f"label: expected one of the model's {len(classes)} classes, got {label[:80]!r}{hint}")
    return classes.index(label)
