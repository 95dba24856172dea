"""Results that several tasks share."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from sppnet.errors import ImageError


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, best score first.

    Attributes:
        boxes: xyxy edges in pixels of the image.
        scores: the higher, the surer; comparable within a class.
        labels: indices of classes.
    """

    boxes: Float[Tensor, "k 4"]
    scores: Float[Tensor, " k"]
    labels: Int[Tensor, " k"]


def above(found: Detections, least: float) -> Detections:
    """The detections with at least this score."""
    good = found.scores >= least
    return Detections(found.boxes[good], found.scores[good], found.labels[good])


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, and why."""

    source: str
    error: ImageError
