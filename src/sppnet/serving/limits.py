"""What the server takes, and how it says no."""

from dataclasses import dataclass

# Every code that an answer may carry: its status, and what it means.
CODES: dict[str, tuple[int, str]] = {
    "bad_request": (400, "the request is not of the form that /openapi.json describes"),
    "bad_option": (400, "an option has no such value"),
    "bad_boxes": (400, "the boxes are not finite xyxy with an area inside the photograph"),
    "too_many_boxes": (400, "more boxes than the server takes"),
    "unauthorized": (401, "the token is missing or wrong"),
    "not_found": (404, "there is no such address"),
    "bad_method": (405, "the address does not take this method"),
    "slow_upload": (408, "the request did not arrive in time"),
    "too_many_bytes": (413, "the request is larger than the server takes"),
    "not_an_image": (415, "the file is no image, is damaged, or is a decompression bomb"),
    "too_many_pixels": (422, "the photograph has more pixels than the server takes"),
    "too_small": (422, "the photograph is too small for the network, or too long and thin"),
    "internal": (500, "the server failed; its log says how"),
    "queue_full": (503, "as many requests wait as the server takes; come back after Retry-After seconds"),
    "not_ready": (503, "the server is still getting ready, or stops"),
}


_OPTIONS = {"bytes": "max-bytes", "pixels": "max-pixels", "boxes": "max-boxes", "queue": "queue"}


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Attributes:
        bytes: of a request's body, at least 1.
        pixels: height times width of a photograph, by its header, at least 1.
        boxes: of one request, at least 1.
        queue: requests that are being received, waiting or being answered; one more is refused. At least 1.
        upload_seconds: in which a request has to arrive, and in which something of an answer has to be taken; above 0.
    """

    bytes: int = 20_000_000
    pixels: int = 50_000_000
    boxes: int = 1000
    queue: int = 64
    upload_seconds: float = 20.0

    def __post_init__(self) -> None:
        for name in _OPTIONS:
            if getattr(self, name) < 1:
                raise ValueError(f"{_OPTIONS[name]}: expected at least 1; got {getattr(self, name)}")
        if not self.upload_seconds > 0:
            raise ValueError(f"upload-seconds: expected more than 0; got {self.upload_seconds}")


class Refusal(ValueError):  # noqa: N818
    """A request that is answered with a code of `CODES` and a message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = CODES[code][0]
        self.message = message

    @property
    def content(self) -> dict[str, str]:
        """The body of the answer."""
        return {"code": self.code, "message": self.message}

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's head says beside."""
        if self.status == 503:
            return {"Retry-After": "1"}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
