"""Non-maximum suppression."""

from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import nms


def suppress(boxes: Float[Tensor, "k 4"], scores: Float[Tensor, " k"], threshold: float) -> Int[Tensor, " n"]:
    """Return the indices kept by greedy non-maximum suppression of one class, best score first.

    Args:
        boxes: xyxy edges.
        scores: scores of any scale.
        threshold: a box is removed if its IoU with a kept box of higher score is larger than this.
    """
    # In float32 an IoU of exactly 0.3 would exceed the float64 threshold 0.3.
    kept: Tensor = nms(boxes.double(), scores.double(), threshold)
    return kept
