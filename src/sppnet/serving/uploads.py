"""A request whose form has been checked, and its answer as it is sent."""

import json
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from torch import Tensor

from sppnet.data.images import MAX_SIDE, image_size
from sppnet.errors import ImageError
from sppnet.features.encoder import check_boxes
from sppnet.serving.limits import Limits, Refusal

Answer = dict[str, Any] | bytes
_Row = tuple[float, float, float, float]


@dataclass(frozen=True)
class Asked:
    """A request whose form has been checked.

    Attributes:
        data: bytes of the photograph's file.
        size: (height, width) by which requests are alike: what the network will see of a classifier's photograph, of
            others the photograph's own.
        key: requests of equal keys may share a batch; None for none.
        answer: gives the answers of requests with this key, in order.
        gone: set when nobody waits for the answer any more.
    """

    data: bytes
    size: tuple[int, int]
    key: Hashable
    answer: Callable[[Sequence["Asked"]], Sequence[Answer]]
    gone: Event = field(default_factory=Event)

    def go_on(self) -> None:
        """What takes long calls this now and then.

        Raises:
            CancelledError: nobody waits for the answer.
        """
        if self.gone.is_set():
            raise CancelledError


@dataclass(frozen=True)
class Encoded:
    """An answer as it is sent.

    Attributes:
        body: its bytes.
        media_type: what they are.
    """

    body: bytes
    media_type: str


def answer_asked(batch: Sequence[Asked]) -> list[Encoded]:
    """The answers of requests that share a batch, encoded here, where it keeps no other request waiting."""
    return [
        Encoded(answer, "application/octet-stream")
        if isinstance(answer, bytes)
        else Encoded(json.dumps(answer, ensure_ascii=False, allow_nan=False).encode(), "application/json")
        for answer in batch[0].answer(batch)
    ]


def header_size(data: bytes, limits: Limits) -> tuple[int, int]:
    """(height, width) of a photograph, by its header.

    Raises:
        Refusal: not an image, or one with too many pixels.
    """
    try:
        height, width = image_size(data)
    except ImageError as error:
        raise Refusal("not_an_image", error.reason) from error
    if height * width > limits.pixels or max(height, width) > MAX_SIDE:
        raise Refusal(
            "too_many_pixels",
            f"expected at most {limits.pixels} pixels and sides of at most {MAX_SIDE}; got {height} x {width}"
            f" (height x width), {height * width} pixels",
        )
    return height, width


def parse_boxes(text: str, size: tuple[int, int], limits: Limits) -> Tensor:
    """Boxes (K, 4) of JSON text, xyxy edges in pixels of a photograph of (height, width).

    Raises:
        Refusal: other text, too many boxes, or a box that is not finite, has no area or lies outside.
    """
    rows: list[_Row] = _parse(text, list[_Row], "boxes", "[[x1, y1, x2, y2], ...]")
    if len(rows) > limits.boxes:
        raise Refusal("too_many_boxes", f"boxes: expected at most {limits.boxes}; got {len(rows)}")
    return _check(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), size, "boxes")


def parse_box(text: str, size: tuple[int, int]) -> Tensor:
    """One box (4,) of JSON text, xyxy edges in pixels of a photograph of (height, width).

    Raises:
        Refusal: other text, or a box that is not finite, has no area or lies outside.
    """
    row: _Row = _parse(text, _Row, "box", "[x1, y1, x2, y2]")
    return _check(torch.tensor([row], dtype=torch.float32), size, "box")[0]


def _parse(text: str, form: Any, name: str, example: str) -> Any:
    from pydantic import (  # of the extra, which the other commands do without
        TypeAdapter,
        ValidationError,
    )

    try:
        return TypeAdapter(form).validate_json(text, strict=True)
    except ValidationError as error:
        raise Refusal("bad_boxes", f"{name}: expected JSON such as {example}; got {text[:80]!r}") from error


def _check(boxes: Tensor, size: tuple[int, int], name: str) -> Tensor:
    try:
        check_boxes(boxes, size, name)
    except ValueError as error:
        raise Refusal("bad_boxes", str(error)) from error
    return boxes
