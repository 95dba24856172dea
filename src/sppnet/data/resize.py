"""The sizes at which images are taken: their own, or one of the customary others."""

import difflib
import math
import re
from dataclasses import dataclass

from PIL import Image

POLICIES = ("native", "shorter-side", "square-min", "warp", "center-crop")
MAX_SIDE = 8192

_WITHOUT_SIDE = ("native", "square-min")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Resize:
    """A way of giving an image the size at which a network sees it.

    The policies:

    - ``native``: the image's own size; with more than ``max_pixels`` it is shrunk, the aspect kept.
    - ``shorter-side``: the shorter side becomes ``side``, the aspect kept, within ``max_pixels``.
    - ``square-min``: warped to a square of the shorter side, within ``max_pixels``.
    - ``warp``: warped to ``side`` x ``side``.
    - ``center-crop``: the shorter side becomes ``side / 0.875``, then the central ``side`` x ``side`` is cut
      out; the usual evaluation on ImageNet (224 from 256).

    Sides are rounded to the nearest pixel, halves up; those that ``max_pixels`` bounds are rounded down, so
    that the bound holds. No side is below 1.

    Attributes:
        policy: one of `POLICIES`.
        side: in pixels, 1 to 8192; None for ``native`` and ``square-min``.
        max_pixels: most pixels (height times width) of the result; 1 or more. ``warp`` and ``center-crop``
            do not use it.
    """

    policy: str
    side: int | None = None
    max_pixels: int = 1_000_000

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            close = difflib.get_close_matches(self.policy[:80], POLICIES, n=2)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"resize policy must be one of {', '.join(POLICIES)}, got {self.policy[:80]!r}{hint}")
        if self.policy in _WITHOUT_SIDE and self.side is not None:
            raise ValueError(f"resize policy {self.policy} takes no side, got {self.side}")
        if self.policy not in _WITHOUT_SIDE and (self.side is None or not 1 <= self.side <= MAX_SIDE):
            raise ValueError(f"resize policy {self.policy} needs a side of 1 to {MAX_SIDE} pixels, got {self.side}")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels must be 1 or more, got {self.max_pixels}")

    @classmethod
    def parse(cls, text: str, default_side: int = 224, max_pixels: int = 1_000_000) -> "Resize":
        """Reads ``POLICY``, ``POLICY:SIDE`` or ``POLICY SIDE``, such as ``native`` or ``warp:256``.

        Args:
            text: what `str` of a Resize gives; ``max_pixels`` is not part of it.
            default_side: the side, in pixels, of a policy that needs one and names none.
            max_pixels: see `Resize`.

        Raises:
            ValueError: if the policy is unknown, or the side is not one that the policy takes.
        """
        policy, *sides = re.split(r"[:\s]+", text.strip())
        if not sides:
            return cls(policy, None if policy in _WITHOUT_SIDE else default_side, max_pixels)
        if len(sides) > 1 or not re.fullmatch("[0-9]{1,9}", sides[0]):
            raise ValueError(f"resize must be POLICY or POLICY:SIDE, such as warp:256, got {text[:80]!r}")
        return cls(policy, int(sides[0]), max_pixels)

    def __str__(self) -> str:
        return self.policy if self.side is None else f"{self.policy}:{self.side}"

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) that an image of this height and width will have.

        Raises:
            ValueError: if a side is below 1.
        """
        if height < 1 or width < 1:
            raise ValueError(f"height and width must be 1 or more, got {height} x {width}")
        if self.policy == "native":
            return _within(height, width, height, width, self.max_pixels)
        if self.policy == "square-min":
            side = min(height, width, math.isqrt(self.max_pixels))
            return side, side
        side = self._side
        if self.policy == "shorter-side":
            return _within(*_shorter_side(height, width, side), height, width, self.max_pixels)
        return side, side

    def __call__(self, image: Image.Image, interpolation: str = "bicubic") -> Image.Image:
        """Resizes an image, antialiased where it shrinks.

        Args:
            image: an RGB image, as `sppnet.data.images.load_image` gives it.
            interpolation: ``bilinear`` or ``bicubic``.

        Returns:
            A new image of size `target_size`, with the same pixels where the size does not change.

        Raises:
            ValueError: if the image is not RGB or the interpolation is unknown.
        """
        if interpolation not in _FILTERS:
            raise ValueError(f"interpolation must be one of {', '.join(_FILTERS)}, got {interpolation!r}")
        if image.mode != "RGB":  # Pillow would take the nearest pixel in a palette image
            raise ValueError(f"image must be of mode RGB, as load_image gives it, got mode {image.mode}")
        height, width = self.target_size(image.height, image.width)
        box = self.crop_box(image.height, image.width) if self.policy == "center-crop" else None
        return image.resize((width, height), _FILTERS[interpolation], box)

    @property
    def _side(self) -> int:
        if self.side is None:
            raise ValueError(f"resize policy {self.policy} has no side")
        return self.side

    def _before_crop(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) of which ``center-crop`` takes the centre."""
        return _shorter_side(height, width, _divide(8 * self._side, 7))

    def crop_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Returns what ``center-crop`` cuts out of an image of this size: (left, top, right, bottom) in its pixels.

        Resizing just this box equals resizing all and cropping then, but for the rounding between Pillow's
        two passes, and does without the resized whole, which would be huge for a long thin image.
        """
        full_height, full_width = self._before_crop(height, width)
        top, left = (full_height - self._side) // 2, (full_width - self._side) // 2
        return (
            left * width / full_width,
            top * height / full_height,
            (left + self._side) * width / full_width,
            (top + self._side) * height / full_height,
        )


def _divide(numerator: int, denominator: int) -> int:
    """Divides positive integers, rounding to the nearest, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def _shorter_side(height: int, width: int, side: int) -> tuple[int, int]:
    if height <= width:
        return side, _divide(width * side, height)
    return _divide(height * side, width), side


def _within(height: int, width: int, aspect_height: int, aspect_width: int, max_pixels: int) -> tuple[int, int]:
    """Returns the size itself, or the largest of the given aspect that has at most ``max_pixels``."""
    if height * width <= max_pixels:
        return height, width
    # In integers, so that the bound is exact: h = sqrt(max_pixels * H / W), rounded down. A very long thin
    # image has one side at 1, and the bound then cuts the other.
    height = max(1, math.isqrt(max_pixels * aspect_height // aspect_width))
    width = max(1, math.isqrt(max_pixels * aspect_width // aspect_height))
    return min(height, max_pixels), min(width, max_pixels)
