"""Multi-view prediction: views are pooled from feature maps, one forward pass per scale and mirroring."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.backbones.backbone import FeatureMap
from sppnet.classify.network import ClassifierNetwork
from sppnet.data.images import to_tensor
from sppnet.data.resize import Resize
from sppnet.ops.bins import window_cells

Views = Literal["full", "10", "18", "96", "96+2"]

# Shorter sides in the paper for views of 224 pixels (section 3.1.4); they scale with the side of the view.
_VIEW, _SINGLE, _SCALES = 224, 256, (224, 256, 300, 360, 448, 560)


def view_windows(height: int, width: int, side: int, places: int) -> Float[Tensor, "k 4"]:
    """Return square windows at the center and the corners of an image, and for 9 places also at the edge midpoints.

    Duplicate windows are dropped: if the image's shorter side equals `side`, 3 windows remain, or 1 if it is square.

    Args:
        height: image height in pixels, at least `side`.
        width: image width in pixels, at least `side`.
        side: side of the windows in pixels.
        places: 5 or 9.

    Returns:
        xyxy edges in pixels, sorted by top, then left.
    """
    tops = (0, (height - side) // 2, height - side)
    lefts = (0, (width - side) // 2, width - side)
    corners = {(top, left) for top in (tops[0], tops[2]) for left in (lefts[0], lefts[2])}
    positions = corners | {(tops[1], lefts[1])} if places == 5 else {(top, left) for top in tops for left in lefts}
    return torch.tensor([(left, top, left + side, top + side) for top, left in sorted(positions)]).float()


def pool_windows(
    model: ClassifierNetwork, maps: Sequence[FeatureMap], windows: Float[Tensor, "k 4"]
) -> Float[Tensor, "k d"]:
    """Compute the pyramid vectors of windows of one image from its feature maps (SPP-net, 3.1.3 and Appendix A)."""
    # Expand by half a pixel to include cells centered on the first or last pixel of a window. Otherwise a window of the
    # whole image would lose the border cells of networks whose first cell is centered on the first pixel.
    expanded = windows + torch.tensor([-0.5, -0.5, 0.5, 0.5])
    parts = []
    for features in maps:
        rows, columns = features.data.shape[2:]
        cells = window_cells(expanded, (rows, columns), features.stride, features.offset)
        crops = [features.data[:, :, top:bottom, left:right] for left, top, right, bottom in cells.tolist()]
        parts.append(torch.cat([model.pool(crop) for crop in crops]))
    return model.concatenate(parts)


def view_probabilities(model: ClassifierNetwork, image: Image.Image, views: Views) -> Float[Tensor, " classes"]:
    """Return the mean class probabilities over the views of one image (SPP-net, sections 3.1.3 and 3.1.4).

    ``10``: center, corners and their mirror images, from the image at shorter side 256, for views of 224 pixels.
    ``18``: also the edge midpoints. ``96``: 18 views at each of six scales, except 6 at the smallest (fewer for a
    square image). ``96+2``: also the full image at 256 and its mirror image. Views have the side of the training
    images of the backbone's weights; if it is not 224, all sizes scale with it.
    """
    view = model.backbone.side
    scales = _SCALES if views.startswith("96") else (_SINGLE,)
    places = 5 if views == "10" else 9
    vectors = []
    for scale in scales:
        shorter = round(scale * view / _VIEW)
        resized = Resize("shorter-side", shorter, max_pixels=1 << 26)(image, model.backbone.interpolation)
        x = to_tensor(resized, model.backbone.mean, model.backbone.std).to(model.device, model.dtype)[None]
        windows = view_windows(resized.height, resized.width, view, places)
        for batch in (x, x.flip(3)):
            maps = model.maps(batch)
            vectors.append(pool_windows(model, maps, windows))
            if views == "96+2" and scale == _SINGLE:
                vectors.append(model.concatenate([model.pool(features.data) for features in maps]))
    logits: Tensor = model.head(torch.cat(vectors))
    return logits.softmax(1).mean(0)
