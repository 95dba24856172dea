"""Results shared by all tasks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sppnet.errors import ImageError

# What prediction does about an image that cannot be used: raise its error, or return a Failure in its place.
OnError = Literal["raise", "skip"]


@dataclass(frozen=True, repr=False)
class Result(ABC):
    """Base class of the results of all tasks: what was found in one image.

    Attributes:
        source: path of the image, or a generated name for an image without one.
        size: (height, width) of the image in pixels, with its EXIF orientation applied.
    """

    source: str
    size: tuple[int, int]

    def __repr__(self) -> str:
        height, width = self.size
        return f"{type(self).__name__}({self.source!r}, {height} x {width}: {self._summary()})"

    @abstractmethod
    def _summary(self) -> str:
        """Describe what was found, for the representation."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {"source": self.source, "size": list(self.size)}

    @abstractmethod
    def draw(self, image: Image.Image) -> Image.Image:
        """Return a copy of the image with the result drawn on it.

        Args:
            image: RGB image of the size of the result, see :func:`sppnet.data.images.load_image`.
        """


@dataclass(frozen=True)
class Failure:
    """An image that could not be used.

    Attributes:
        source: path of the image, or a generated name for an image without one.
        error: error that names the image and the reason.
    """

    source: str
    error: ImageError

    def to_dict(self) -> dict[str, Any]:
        """Return the source and the reason as JSON types."""
        return {"source": self.source, "failure": self.error.reason}


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
