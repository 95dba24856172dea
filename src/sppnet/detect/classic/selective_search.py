"""Selective search (Uijlings et al., 2013) with OpenCV, split into parts so that a time limit can stop it."""

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
from torchvision.ops import clip_boxes_to_image

from sppnet.errors import import_optional

# R-CNN resizes every image to this width; here only larger images are shrunk. Doubling it takes eight times as long.
_MAX_SIDE = 500
_SIGMA = 0.8
_COMBINED = (("Color", "Fill", "Texture", "Size"), ("Fill", "Texture", "Size"))


@dataclass(frozen=True)
class _Search:
    """Configuration: every color space is segmented with every graph and grouped with every strategy.

    Attributes:
        spaces: color spaces, keys of :func:`_spaces`.
        graphs: (k, minimum segment size in pixels) of each graph segmentation.
        strategies: similarity measures whose sum guides each grouping.
        min_side: minimum side of a box, in pixels of the shrunk image; smaller boxes are dropped.
    """

    spaces: tuple[str, ...]
    graphs: tuple[tuple[int, int], ...]
    strategies: tuple[tuple[str, ...], ...]
    min_side: int


SEARCHES = {
    # The configuration of SPP-net and R-CNN, called "fast" in the papers.
    "selective-search": _Search(("hsv", "lab"), ((50, 50), (100, 100)), _COMBINED, 20),
    # OpenCV's two modes, named after the authors' modes but with other segmentations.
    "selective-search-fast": _Search(("hsv", "lab"), tuple((k, 100) for k in (150, 300, 450)), _COMBINED, 1),
    "selective-search-quality": _Search(
        ("hsv", "lab", "gray", "blue", "rgi"),
        tuple((k, 100) for k in (150, 300, 450, 600, 750)),
        (*_COMBINED, ("Fill",), ("Size",)),
        1,
    ),
}


def selective_search(image: Image.Image, search: str, deadline: float | None) -> tuple[Float[Tensor, "k 4"], bool]:
    """Return the boxes of all segments of an image and of the regions they are merged into.

    An image with a longer side above 500 pixels is shrunk to 500 for the search, which bounds the time.

    Args:
        image: RGB image.
        search: key of `SEARCHES`.
        deadline: `time.monotonic` value after which no further part (one color space in one segmentation) is started;
            the first part always runs. None for no limit.

    Returns:
        Unique xyxy edges in pixels of the image, sorted by x1, y1, x2, y2; and whether all parts ran.

    Raises:
        ModuleNotFoundError: OpenCV or its contrib modules are missing.
    """
    cv2 = load_cv2()
    config = SEARCHES[search]
    pixels = np.asarray(_shrink(image))
    spaces = _spaces(cv2, pixels)
    rectangles, complete = [], True
    for number, (graph, space) in enumerate(product(config.graphs, config.spaces)):
        if number and deadline is not None and time.monotonic() >= deadline:
            complete = False
            break
        rectangles.append(_process(cv2, spaces[space], graph, config.strategies))
    # Sorted, because OpenCV returns them in random order.
    x, y, width, height = np.unique(np.concatenate(rectangles), axis=0).astype(np.float64).T
    edges = torch.from_numpy(np.stack((x, y, x + width, y + height), axis=1))
    edges = edges[torch.from_numpy(np.minimum(width, height) >= config.min_side)]
    scale = edges.new_tensor([image.width / pixels.shape[1], image.height / pixels.shape[0]]).repeat(2)
    return clip_boxes_to_image((edges * scale).float(), (image.height, image.width)), complete


def load_cv2() -> Any:
    """Import OpenCV with its contrib modules, as an untyped module.

    Raises:
        ModuleNotFoundError: OpenCV or its contrib modules are missing.
    """
    cv2 = import_optional("cv2", "searches for proposals")
    if not hasattr(cv2, "ximgproc"):
        raise ModuleNotFoundError(
            f"searches for proposals need the contrib modules of OpenCV, which the installed OpenCV {cv2.__version__}"
            " lacks; install the extra 'detect' of sppnet instead"
        )
    return cv2


def _shrink(image: Image.Image) -> Image.Image:
    longer = max(image.size)
    if longer <= _MAX_SIDE:
        return image
    width, height = (max(1, round(side * _MAX_SIDE / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _spaces(cv2: Any, rgb: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return {
        "hsv": cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV),
        "lab": cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab),
        "gray": gray,
        # OpenCV's quality mode adds the hue, but then overwrites its memory with the blue channel.
        "blue": np.ascontiguousarray(rgb[..., 2]),
        "rgi": np.stack((rgb[..., 0], rgb[..., 1], gray), axis=2),
    }


def _process(
    cv2: Any, pixels: NDArray[np.uint8], graph: tuple[int, int], strategies: tuple[tuple[str, ...], ...]
) -> NDArray[np.int32]:
    """Search one part without holding the GIL; return rectangles (x, y, width, height)."""
    module = cv2.ximgproc.segmentation
    search = module.createSelectiveSearchSegmentation()
    search.addImage(pixels)
    k, min_size = graph
    search.addGraphSegmentation(module.createGraphSegmentation(_SIGMA, float(k), min_size))
    for names in strategies:
        # Created for each part: strategies cache the histograms of the first image they process.
        measures = [getattr(module, f"createSelectiveSearchSegmentationStrategy{name}")() for name in names]
        multiple = module.createSelectiveSearchSegmentationStrategyMultiple
        search.addStrategy(multiple(*measures) if len(measures) > 1 else measures[0])
    rectangles: NDArray[np.int32] = search.process()
    return rectangles
