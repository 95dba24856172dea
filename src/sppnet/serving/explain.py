"""What gave an answer, in pixels of the photograph: bins and cells of a class, cells of a box, live taps of a map."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from sppnet.backbones.geometry import Geometry
from sppnet.classify.model import Classifier
from sppnet.data.images import to_tensor
from sppnet.data.resize import Resize
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.drawing import cell_borders
from sppnet.layers.aspp import ASPP
from sppnet.layers.atrous import live_taps
from sppnet.ops.bins import Level, Rule, clipped_edges, parse_levels
from sppnet.segment.model import Segmenter

Edges = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Pass:
    """One image's way through a classifier.

    Attributes:
        index: of the class that is explained.
        logits: of all classes.
        rest: what the vector's numbers leave of the logit.
        given: what each number of the vector gave to it.
        cells: what each cell of the map gave to it.
    """

    index: int
    logits: Float[Tensor, " classes"]
    rest: float
    given: Float[Tensor, " d"]
    cells: Float[Tensor, "rows columns"]


def explain_image(model: Classifier, image: Image.Image, resize: Resize, label: str | None = None) -> dict[str, Any]:
    """How much each bin and each cell gave to the logit of a class.

    The logit of the heads `plain` and `linear` is a sum over the vector's numbers, as the scale of `linear` is one
    number of the image: the contributions and the bias, which is `rest`, add up to it, and `exact` is true. For the
    head `fc` they are gradient times vector, and `rest` is what they leave of the logit.

    A cell has what the bins took from it, all of a maximum that it holds and its share of a mean. So the cells, too,
    add up to the logit less `rest`.

    Args:
        model: in evaluation mode while this runs.
        image: RGB, as :func:`sppnet.data.images.load_image` gives it.
        resize: the size at which the network sees it.
        label: the class; None for the likeliest.

    Returns:
        `task`, `label`, `score` (its probability), `logit`, `rest`, `exact`; `size` and `network_size`, (height,
        width) in pixels; `seen`, the part of the photograph that the network saw; `levels`, each with its `bins` row
        by row; and `cells`, evenly laid out row by row between the edges `x` and `y`. Boxes and edges are in pixels
        of the photograph.

    Raises:
        ValueError: no such class, or an image that is too small for the network.
    """
    config = model.config
    index = None if label is None else class_index(config.classes, label)
    resized = resize(image, model.backbone.interpolation)
    training = model.training
    model.eval()
    try:
        found = _follow(model, resized, index)
    finally:
        model.train(training)
    rows, columns = found.cells.shape
    seen = _seen(resize, image)
    geometry = model.backbone.geometry
    y, x = _borders(geometry, (resized.height, resized.width), seen)
    levels = _levels(config.levels, (0, 0, columns, rows), y, x, config.rule)
    contributions = _per_bin(found.given, config.levels, model.backbone.channels)
    for bin_, value in zip((bin_ for level in levels for bin_ in level["bins"]), contributions, strict=True):
        bin_["contribution"] = value
    return {
        "task": "classify",
        "label": config.classes[found.index],
        "score": float(found.logits.softmax(0)[found.index]),
        "logit": float(found.logits[found.index]),
        "rest": found.rest,
        "exact": config.head != "fc",
        "size": [image.height, image.width],
        "network_size": [resized.height, resized.width],
        "seen": list(seen),
        "levels": levels,
        "cells": {"rows": rows, "columns": columns, "values": found.cells.flatten().tolist(), "x": x, "y": y},
    }


def explain_box(encoder: RegionEncoder, size: tuple[int, int], box: Float[Tensor, " 4"]) -> dict[str, Any]:
    """Which cells of the feature map a box pools, and where its bins lie; the network does not run.

    Args:
        encoder: whose vector it is.
        size: (height, width) of the photograph.
        box: xyxy edges in pixels of the photograph; it overlaps it.

    Returns:
        `size`; `scale`, `network_size` and `map_size` at which the box is pooled; `cells`, half-open (left, top,
        right, bottom); `levels`, each with its `bins` row by row; the edges `x` and `y` of all the map's cells. Boxes
        and edges are in pixels of the photograph. Under the rule ``roi_pool`` cells may lie outside the map; a bin of
        none but such cells has no area.
    """
    found = encoder.cells(box, size)
    y, x = _borders(encoder.backbone.geometry, found.network_size, (0.0, 0.0, float(size[1]), float(size[0])))
    return {
        "size": list(size),
        "scale": found.scale,
        "network_size": list(found.network_size),
        "map_size": list(found.map_size),
        "cells": list(found.cells),
        "levels": _levels(encoder.levels, found.cells, y, x),
        "x": x,
        "y": y,
    }


def explain_taps(model: Segmenter, size: tuple[int, int]) -> dict[str, Any]:
    """How much of each atrous rate's 3x3 kernel lies on the map of a photograph that is looked at in one pass.

    Args:
        model: a segmenter with ASPP; the network does not run.
        size: (height, width) of the photograph.

    Returns:
        `task`, `size`, `map_size` in cells, and for each of `rates` its `share` of taps that lie on the map, the mean
        of `live`: for each of the nine, row by row, the share of the cells at which it does.

    Raises:
        ValueError: the model has no ASPP.
    """
    context = model.head.context
    if not isinstance(context, ASPP):
        raise ValueError(
            f"model: expected a segmenter with ASPP, which has rates; got the head {model.config.head} with"
            f" context={model.config.context!r}"
        )
    geometry = model.backbone.geometry
    least = geometry.smallest()
    rows, columns = geometry.map_size(max(size[0], least[0]), max(size[1], least[1]))
    return {
        "task": "segment",
        "size": list(size),
        "map_size": [rows, columns],
        "rates": [
            {
                "rate": rate,
                "share": live_taps(rate, (rows, columns)).share,
                "live": [down * across for down in _axis_live(rate, rows) for across in _axis_live(rate, columns)],
            }
            for rate in context.rates
        ],
    }


def _follow(model: Classifier, image: Image.Image, index: int | None) -> _Pass:
    backbone, head = model.backbone, model.head
    x = to_tensor(image, backbone.mean, backbone.std).to(model.device, model.dtype)[None]
    with torch.inference_mode():
        data = backbone(x.contiguous(memory_format=torch.channels_last)).data
    # The caller may be in inference mode, in which nothing has a gradient.
    with torch.inference_mode(mode=False), torch.enable_grad():
        maps = data.clone().requires_grad_()
        pooled = model.pool(maps)
        vector = pooled.detach().requires_grad_()
        logits = head(vector)[0]
        index = int(logits.argmax()) if index is None else index
        slope, bias = _slope(head, vector, logits, index)
        (per_cell,) = torch.autograd.grad(pooled, maps, slope)
    given, cells = (
        slope.cpu().double() * vector.detach().cpu().double(),
        per_cell.cpu().double() * maps.detach().cpu().double(),
    )
    logits = logits.detach().cpu().double()
    rest = float(logits[index] - given.sum()) if bias is None else bias
    return _Pass(index, logits, rest, given[0], cells[0].sum(0))


def _slope(head: nn.Module, vector: Tensor, logits: Tensor, index: int) -> tuple[Tensor, float | None]:
    """What a logit gains for each unit of each number of the vector, and its bias where that is all there is."""
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


def _per_bin(given: Tensor, levels: Sequence[Level], channels: int) -> list[float]:
    """Sums over the channels, for the bins of all levels."""
    grids = parse_levels(levels)
    parts = given.split([channels * rows * columns for rows, columns in grids])
    return torch.cat([part.view(channels, -1).sum(0) for part in parts]).tolist()


def _levels(
    levels: Sequence[Level], window: tuple[int, int, int, int], y: list[float], x: list[float], rule: Rule = "adaptive"
) -> list[dict[str, Any]]:
    """The bins of a window of cells between the map's edges."""
    grids = parse_levels(levels)
    edges = clipped_edges(torch.tensor([window]), (len(y) - 1, len(x) - 1), grids, rule)[0].tolist()
    out = []
    for rows, columns in grids:
        down, across, edges = edges[:rows], edges[rows : rows + columns], edges[rows + columns :]
        boxes = [[x[left], y[top], x[right], y[bottom]] for top, bottom in down for left, right in across]
        out.append({"rows": rows, "columns": columns, "bins": [{"box": box} for box in boxes]})
    return out


def _borders(geometry: Geometry, network_size: tuple[int, int], seen: Edges) -> tuple[list[float], list[float]]:
    """Edges of a map's rows and of its columns on the photograph, of which the network saw the part `seen`."""
    offset, cells = geometry.offset(*network_size), geometry.map_size(*network_size)
    y, x = cell_borders(cells, geometry.stride, offset, network_size, network_size)
    left, top, right, bottom = seen
    return (
        [top + edge * (bottom - top) / network_size[0] for edge in y],
        [left + edge * (right - left) / network_size[1] for edge in x],
    )


def _seen(resize: Resize, image: Image.Image) -> Edges:
    """The part of the photograph that a size policy shows the network, xyxy in its pixels."""
    if resize.policy == "center-crop":
        return resize.crop_box(image.height, image.width)
    return 0.0, 0.0, float(image.width), float(image.height)


def _axis_live(rate: int, cells: int) -> tuple[float, float, float]:
    """Share of the cells of one side at which the tap before, the middle one and the one after lie on the map."""
    share = max(cells - rate, 0) / cells
    return share, 1.0, share


def class_index(classes: Sequence[str], label: str) -> int:
    """Where a class stands among the logits.

    Raises:
        ValueError: there is no such class; close ones are named.
    """
    if label not in classes:
        close = difflib.get_close_matches(label[:80], classes, n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else f"; one is {classes[0]!r}"
        raise ValueError(f"label: expected one of the model's {len(classes)} classes; got {label[:80]!r}{hint}")
    return classes.index(label)
