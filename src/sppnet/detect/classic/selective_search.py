"""Selective search (Uijlings et al., 2013), computed by OpenCV in parts, so that a clock can stop it between two."""

import importlib
import time
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sppnet.ops.boxes import clip

# The width to which R-CNN brings every image; here only larger ones are changed. Twice the side takes eight times as
# long.
_LONGER_SIDE = 500
_SIGMA = 0.8
_MULTIPLE = (("Color", "Fill", "Texture", "Size"), ("Fill", "Texture", "Size"))


@dataclass(frozen=True)
class _Search:
    """A configuration: every colour space is segmented in every way, and every segmentation is grouped by every
    strategy.

    Attributes:
        spaces: names of :func:`_spaces`.
        graphs: the graph segmentations' (k, least pixels of a segment).
        strategies: similarities that are added up; one grouping each.
        least_side: boxes with a smaller side are dropped, in pixels of the image as it is searched.
    """

    spaces: tuple[str, ...]
    graphs: tuple[tuple[int, int], ...]
    strategies: tuple[tuple[str, ...], ...]
    least_side: int


SEARCHES = {
    # SPP-net's and R-CNN's, which their papers call "fast".
    "selective-search": _Search(("hsv", "lab"), ((50, 50), (100, 100)), _MULTIPLE, 20),
    # OpenCV's two modes. It calls them by the names of the authors' modes, but they have other segmentations.
    "selective-search-fast": _Search(("hsv", "lab"), tuple((k, 100) for k in (150, 300, 450)), _MULTIPLE, 1),
    "selective-search-quality": _Search(
        ("hsv", "lab", "grey", "blue", "rgi"),
        tuple((k, 100) for k in (150, 300, 450, 600, 750)),
        (*_MULTIPLE, ("Fill",), ("Size",)),
        1,
    ),
}


def selective_search(image: Image.Image, search: str, deadline: float | None) -> tuple[Float[Tensor, "k 4"], bool]:
    """Boxes of the segments of an image and of all that they are merged into.

    An image whose longer side has more than 500 pixels is searched at 500, so that a photograph of any size takes
    about the time of a small one; the same picture in two such sizes has the same boxes.

    Args:
        image: RGB.
        search: one of `SEARCHES`.
        deadline: of `time.monotonic`. No new part (one colour space in one segmentation) is begun after it; the
            first always is. None for no limit.

    Returns:
        xyxy edges in pixels of the image, each box once, sorted by x1, y1, x2, y2; and whether all parts were done.

    Raises:
        ModuleNotFoundError: OpenCV or its contrib modules are missing.
    """
    cv2 = load_cv2()
    config = SEARCHES[search]
    pixels = np.asarray(_shrink(image))
    spaces = _spaces(cv2, pixels)
    found, complete = [], True
    for number, (graph, space) in enumerate(product(config.graphs, config.spaces)):
        if number and deadline is not None and time.monotonic() >= deadline:
            complete = False
            break
        found.append(_process(cv2, spaces[space], graph, config.strategies))
    # OpenCV's order follows random ranks.
    x, y, width, height = np.unique(np.concatenate(found), axis=0).astype(np.float64).T
    edges = torch.from_numpy(np.stack((x, y, x + width, y + height), axis=1))
    edges = edges[torch.from_numpy(np.minimum(width, height) >= config.least_side)]
    scale = edges.new_tensor([image.width / pixels.shape[1], image.height / pixels.shape[0]]).repeat(2)
    return clip((edges * scale).float(), (image.height, image.width)), complete


def load_cv2() -> Any:
    """OpenCV with its contrib modules, as an untyped module.

    Raises:
        ModuleNotFoundError: one or the other is missing.
    """
    hint = 'selective search needs OpenCV with its contrib modules: pip install "sppnet[detect]"'
    try:
        cv2 = importlib.import_module("cv2")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(hint) from error
    if not hasattr(cv2, "ximgproc"):
        raise ModuleNotFoundError(f"{hint}; the OpenCV that is installed, {cv2.__version__}, has none")
    return cv2


def _shrink(image: Image.Image) -> Image.Image:
    longer = max(image.size)
    if longer <= _LONGER_SIDE:
        return image
    width, height = (max(1, round(side * _LONGER_SIDE / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _spaces(cv2: Any, rgb: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return {
        "hsv": cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV),
        "lab": cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab),
        "grey": grey,
        # OpenCV's quality mode adds the hue, and then writes the blue channel into the same memory.
        "blue": np.ascontiguousarray(rgb[..., 2]),
        "rgi": np.stack((rgb[..., 0], rgb[..., 1], grey), axis=2),
    }


def _process(
    cv2: Any, pixels: NDArray[np.uint8], graph: tuple[int, int], strategies: tuple[tuple[str, ...], ...]
) -> NDArray[np.int32]:
    """Rectangles (x, y, width, height) of one part; OpenCV lets other threads run meanwhile."""
    module = cv2.ximgproc.segmentation
    search = module.createSelectiveSearchSegmentation()
    search.addImage(pixels)
    k, least = graph
    search.addGraphSegmentation(module.createGraphSegmentation(_SIGMA, float(k), least))
    for names in strategies:
        # New ones each time: they remember the histograms of "image 0", whichever that was.
        parts = [getattr(module, f"createSelectiveSearchSegmentationStrategy{name}")() for name in names]
        multiple = module.createSelectiveSearchSegmentationStrategyMultiple
        search.addStrategy(multiple(*parts) if len(parts) > 1 else parts[0])
    rectangles: NDArray[np.int32] = search.process()
    return rectangles
