"""The result of a detector for one image."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.detect.pictures import draw_detections
from sppnet.errors import import_optional
from sppnet.inference.results import Detections, Result


@dataclass(frozen=True, eq=False, repr=False)
class DetectionResult(Result):
    """Objects detected in one image, by descending score.

    Attributes:
        source, size: as in :class:`sppnet.inference.results.Result`.
        detections: boxes, scores and class indices.
        classes: names of all classes of the detector.
        proposals: boxes among which the objects were detected, as xyxy edges in pixels of the image.
        vectors: pyramid vector of each object, in float32; None if they were not asked for.
    """

    detections: Detections
    classes: tuple[str, ...]
    proposals: Float[Tensor, "p 4"] = field(default_factory=lambda: torch.empty(0, 4))
    vectors: Float[Tensor, "k d"] | None = None

    @property
    def boxes(self) -> Float[Tensor, "k 4"]:
        """Edges x1, y1, x2, y2 of each object, in pixels of the image."""
        return self.detections.boxes

    @property
    def scores(self) -> Float[Tensor, " k"]:
        """Score of each object, comparable within a class."""
        return self.detections.scores

    @property
    def labels(self) -> tuple[str, ...]:
        """Class name of each object."""
        return tuple(self.classes[label] for label in self.detections.labels.tolist())

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types; each object has `label`, `score` and `box`."""
        rows = zip(self.labels, self.scores.tolist(), self.boxes.tolist(), strict=True)
        objects = [{"label": label, "score": score, "box": box} for label, score, box in rows]
        return super().to_dict() | {"objects": objects}

    def to_supervision(self) -> Any:
        """Return the objects as ``supervision.Detections``; `class_id` is the index in `classes`.

        Raises:
            ModuleNotFoundError: the extra `supervision` is not installed.
        """
        supervision = import_optional("supervision", "Detections of supervision")
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.detections.labels.numpy(),
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def draw(self, image: Image.Image) -> Image.Image:
        """Return a copy of the image with the outline, class and score of each object."""
        return draw_detections(image, self.detections, self.classes)

    def _summary(self) -> str:
        best = [f"{label} {score:.2f}" for label, score in zip(self.labels[:3], self.scores, strict=False)]
        more = [f"{len(self.labels) - 3} more"] if len(self.labels) > 3 else []
        return ", ".join(best + more) or "no objects"
