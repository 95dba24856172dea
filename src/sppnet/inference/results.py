"""Results shared by several tasks."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from sppnet.errors import ImageError


@dataclass(frozen=True)
class Detections:
    """Detections in one image, by descending score.

    Attributes:
        boxes: xyxy edges in pixels of the image.
        scores: confidence scores, comparable within a class.
        labels: class indices.
    """

    boxes: Float[Tensor, "k 4"]
    scores: Float[Tensor, " k"]
    labels: Int[Tensor, " k"]


def filter_by_score(found: Detections, least: float) -> Detections:
    """Return the detections with a score of at least `least`."""
    keep = found.scores >= least
    return Detections(found.boxes[keep], found.scores[keep], found.labels[keep])


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, and the error."""

    source: str
    error: ImageError
