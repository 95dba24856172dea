"""Checked requests, and their encoded responses."""

import json
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import PureWindowsPath  # both slashes separate its folders
from threading import Event
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from sppnet.data.images import MAX_SIDE, image_size
from sppnet.errors import ImageError
from sppnet.features.boxes import check_boxes
from sppnet.serving.limits import Limits, Refusal

Answer = dict[str, Any] | bytes
_NAME_LENGTH = 255
_Row = tuple[float, float, float, float]


@dataclass(frozen=True)
class Upload:
    """A photograph with checked options.

    Attributes:
        data: content of the image file.
        size: (height, width) used for batching, in pixels: network input for classifiers, else photograph.
        key: batching key; only uploads with equal keys share a batch. None: the upload is processed alone.
        answer: function that computes the answers of a batch of uploads with this key, in order.
        source: file name, for the result.
        gone: event, set once the client has disconnected.
    """

    data: bytes
    size: tuple[int, int]
    key: Hashable
    answer: Callable[[Sequence["Upload"]], Sequence[Answer]]
    source: str = "upload"
    gone: Event = field(default_factory=Event)

    def go_on(self) -> None:
        """Check for cancellation; long computations call this from time to time.

        Raises:
            CancelledError: the client has disconnected.
        """
        if self.gone.is_set():
            raise CancelledError


@dataclass(frozen=True)
class Encoded:
    """An encoded response.

    Attributes:
        body: content of the response.
        media_type: media type of the body.
    """

    body: bytes
    media_type: str


def answer_uploads(batch: Sequence[Upload]) -> list[Encoded]:
    """Compute and encode the answers of a batch; encoding runs in the worker to keep the event loop responsive."""
    return [
        Encoded(answer, "application/octet-stream")
        if isinstance(answer, bytes)
        else Encoded(json.dumps(answer, ensure_ascii=False, allow_nan=False).encode(), "application/json")
        for answer in batch[0].answer(batch)
    ]


def upload_name(filename: str | None) -> str:
    """Return the file name of an upload without folders and control characters; "upload" if it has none."""
    name = "".join(filter(str.isprintable, PureWindowsPath(filename or "").name))[:_NAME_LENGTH]
    return name if name.strip(".") else "upload"


def header_size(data: bytes, limits: Limits) -> tuple[int, int]:
    """Read the (height, width) of a photograph from its header.

    Raises:
        Refusal: the file is not an image, or the image has too many pixels.
    """
    try:
        height, width = image_size(data)
    except ImageError as error:
        raise Refusal("not_an_image", error.reason) from error
    most = limits.max_image_pixels
    if height * width > most or max(height, width) > MAX_SIDE:
        raise Refusal(
            "too_many_pixels",
            f"image: expected at most {most} pixels and sides of at most {MAX_SIDE}, got {height} x {width}"
            f" (height x width), {height * width} pixels",
        )
    return height, width


def parse_boxes(text: str, size: tuple[int, int], limits: Limits) -> Tensor:
    """Parse JSON into boxes (K, 4), xyxy edges in pixels of a photograph of size (height, width).

    Raises:
        Refusal: the text is invalid, there are too many boxes, or a box is not finite, empty or outside the photograph.
    """
    rows: list[_Row] = _parse(text, list[_Row], "boxes", "[[x1, y1, x2, y2], ...]")
    if len(rows) > limits.max_boxes:
        raise Refusal("too_many_boxes", f"boxes: expected at most {limits.max_boxes}, got {len(rows)}")
    return _check(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), size, "boxes")


def parse_box(text: str, size: tuple[int, int]) -> Tensor:
    """Parse JSON into one box (4,), xyxy edges in pixels of a photograph of size (height, width).

    Raises:
        Refusal: the text is invalid, or the box is not finite, empty or outside the photograph.
    """
    row: _Row = _parse(text, _Row, "box", "[x1, y1, x2, y2]")
    return _check(torch.tensor([row], dtype=torch.float32), size, "box")[0]


def _parse(text: str, form: Any, name: str, example: str) -> Any:
    try:
        return TypeAdapter(form).validate_json(text, strict=True)
    except ValidationError as error:
        raise Refusal("bad_boxes", f"{name}: expected JSON such as {example}, got {text[:80]!r}") from error


def _check(boxes: Tensor, size: tuple[int, int], name: str) -> Tensor:
    try:
        check_boxes(boxes, size, name)
    except ValueError as error:
        raise Refusal("bad_boxes", str(error)) from error
    return boxes
