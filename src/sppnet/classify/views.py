"""Several views of one image, pooled from its feature maps: one convolutional pass a scale and flip."""

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

# The paper's sides for views of 224 pixels (section 3.1.4); other view sides scale them.
_VIEW, _SINGLE, _SCALES = 224, 256, (224, 256, 300, 360, 448, 560)


def view_windows(height: int, width: int, side: int, places: int) -> Float[Tensor, "k 4"]:
    """Square windows of an image: its centre and corners, and with 9 places the middles of its sides too.

    Windows that coincide are given once: an image whose shorter side is the window's has 3, a square one 1.

    Args:
        height: of the image, at least `side`, in pixels.
        width: of the image, at least `side`, in pixels.
        side: of the windows, in pixels.
        places: 5 or 9.

    Returns:
        xyxy edges in pixels, from top to bottom and left to right.
    """
    tops = (0, (height - side) // 2, height - side)
    lefts = (0, (width - side) // 2, width - side)
    corners = {(top, left) for top in (tops[0], tops[2]) for left in (lefts[0], lefts[2])}
    chosen = corners | {(tops[1], lefts[1])} if places == 5 else {(top, left) for top in tops for left in lefts}
    return torch.tensor([(left, top, left + side, top + side) for top, left in sorted(chosen)]).float()


def pool_windows(model: ClassifierNetwork, features: FeatureMap, windows: Float[Tensor, "k 4"]) -> Float[Tensor, "k d"]:
    """Pyramid vectors of windows of one image, taken from its map (SPP-net, section 3.1.3 and Appendix A)."""
    rows, columns = features.data.shape[2:]
    # Half a pixel wider, so that a centre on a window's first or last pixel counts: without it the whole image, as a
    # window, would lose the border cells of networks whose first centre is the first pixel.
    wider = windows + torch.tensor([-0.5, -0.5, 0.5, 0.5])
    cells = window_cells(wider, (rows, columns), features.stride, features.offset)
    crops = [features.data[:, :, top:bottom, left:right] for left, top, right, bottom in cells.tolist()]
    return torch.cat([model.pool(crop) for crop in crops])


def view_probabilities(model: ClassifierNetwork, image: Image.Image, views: Views) -> Float[Tensor, " classes"]:
    """Mean of the softmax over the views of one image (SPP-net, sections 3.1.3 and 3.1.4).

    ``10``: centre and corners and their mirror images, shorter side 256 for views of 224. ``18``: the middles
    of the sides too. ``96``: 18 at each of six scales, 6 at the smallest (a square image has fewer). ``96+2``:
    and the full image with its mirror image at 256. Other view sides, as the backbone's weights have them,
    scale with 224.
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
            features = model.backbone(batch)
            vectors.append(pool_windows(model, features, windows))
            if views == "96+2" and scale == _SINGLE:
                vectors.append(model.pool(features.data))
    logits: Tensor = model.head(torch.cat(vectors))
    return logits.softmax(1).mean(0)
