"""Request limits, runtimes and error codes; imported by the command line, so without torch."""

from dataclasses import dataclass
from typing import Literal

from sppnet.errors import require_positive

Runtime = Literal["eager", "compiled", "onnx"]

# Error codes with their HTTP status and meaning.
CODES: dict[str, tuple[int, str]] = {
    "bad_request": (400, "the request does not match /openapi.json"),
    "bad_option": (400, "an option has an invalid value"),
    "bad_boxes": (400, "a box is not finite, has no area, or is outside the photograph"),
    "too_many_boxes": (400, "more boxes than the server accepts"),
    "unauthorized": (401, "the token is missing or wrong"),
    "not_found": (404, "the route does not exist"),
    "bad_method": (405, "the route does not support this method"),
    "slow_upload": (408, "the request did not arrive in time"),
    "too_many_bytes": (413, "the request is larger than the server accepts"),
    "not_an_image": (415, "the file is not an image, is damaged, or is a decompression bomb"),
    "too_many_pixels": (422, "the photograph has more pixels than the server accepts"),
    "too_small": (422, "the photograph is too small or too narrow for the network"),
    "internal": (500, "the server failed; see its log"),
    "queue_full": (503, "too many concurrent requests; retry after Retry-After seconds"),
    "not_ready": (503, "the server is still loading or is shutting down"),
}


@dataclass(frozen=True)
class Limits:
    """Request limits.

    Attributes:
        max_bytes: largest request body in bytes, at least 1.
        max_image_pixels: largest height times width of a photograph according to its header, at least 1.
        max_boxes: largest number of boxes per request, at least 1.
        queue: largest number of requests that are being received, queued or processed, at least 1.
        upload_seconds: seconds within which a request must arrive completely, and a client must receive a part of the
            response, above 0.
    """

    max_bytes: int = 20_000_000
    max_image_pixels: int = 50_000_000
    max_boxes: int = 1000
    queue: int = 64
    upload_seconds: float = 20.0

    def __post_init__(self) -> None:
        require_positive(self, "max_bytes", "max_image_pixels", "max_boxes", "queue")
        if not self.upload_seconds > 0:
            raise ValueError(f"upload_seconds: expected more than 0, got {self.upload_seconds}")


class Refusal(ValueError):  # noqa: N818
    """Refused request, with an error code from `CODES` and a readable message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = CODES[code][0]
        self.message = message

    @property
    def content(self) -> dict[str, str]:
        """JSON body of the response."""
        return {"code": self.code, "message": self.message}

    @property
    def headers(self) -> dict[str, str]:
        """Additional response headers."""
        if self.status == 503:
            return {"Retry-After": "1"}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
