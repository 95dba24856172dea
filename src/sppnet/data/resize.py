"""Resize policies that turn an image's own size into the network's input size."""

import math
import re
from dataclasses import dataclass

from PIL import Image

from sppnet.errors import did_you_mean

POLICIES = ("native", "shorter-side", "square-min", "warp", "center-crop")
MAX_SIDE = 8192

_WITHOUT_SIDE = ("native", "square-min")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Resize:
    """A resize policy, applied to an image before it enters the network.

    The policies:

    - ``native``: keep the image's own size; above ``max_pixels``, shrink it, keeping the aspect ratio.
    - ``shorter-side``: resize the shorter side to ``side``, keeping the aspect ratio, within ``max_pixels``.
    - ``square-min``: warp to a square with the shorter side, within ``max_pixels``.
    - ``warp``: warp to ``side`` x ``side``.
    - ``center-crop``: resize the shorter side to ``side / 0.875``, then crop the central ``side`` x ``side``; the
      usual evaluation on ImageNet (224 from 256).

    Sides are rounded to the nearest multiple of ``multiple`` (halves up), but down where ``max_pixels`` limits them.
    No side is below ``multiple``.

    Attributes:
        policy: one of `POLICIES`.
        side: side in pixels, 1 to 8192; None for ``native`` and ``square-min``.
        max_pixels: maximum number of pixels (height times width) of the result, at least 1; ignored by ``warp`` and
            ``center-crop``.
        multiple: side in pixels of which the network takes multiples, see :attr:`sppnet.Backbone.multiple`.
    """

    policy: str
    side: int | None = None
    max_pixels: int = 1_000_000
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            policy = self.policy[:80]
            hint = did_you_mean(policy, POLICIES)
            raise ValueError(f"resize: expected one of {', '.join(POLICIES)}, got {policy!r}{hint}")
        if self.policy in _WITHOUT_SIDE and self.side is not None:
            raise ValueError(f"resize: expected no side for {self.policy}, got {self.side}")
        if self.policy not in _WITHOUT_SIDE and (self.side is None or not 1 <= self.side <= MAX_SIDE):
            raise ValueError(f"resize: expected a side of 1..{MAX_SIDE} pixels for {self.policy}, got {self.side}")
        for name in ("max_pixels", "multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @classmethod
    def parse(cls, text: str, default_side: int = 224, max_pixels: int = 1_000_000, multiple: int = 1) -> "Resize":
        """Parse ``POLICY``, ``POLICY:SIDE`` or ``POLICY SIDE``, such as ``native`` or ``warp:256``.

        Args:
            text: policy and side, as returned by `str` for a Resize.
            default_side: side in pixels for policies that need one, if `text` has none.
            max_pixels: see `Resize`.
            multiple: see `Resize`.

        Raises:
            ValueError: unknown policy, or a side that is illegal for the policy.
        """
        policy, *sides = re.split(r"[:\s]+", text.strip())
        if not sides:
            return cls(policy, None if policy in _WITHOUT_SIDE else default_side, max_pixels, multiple)
        if len(sides) > 1 or not re.fullmatch("[0-9]{1,9}", sides[0]):
            raise ValueError(f"resize: expected POLICY or POLICY:SIDE, such as warp:256, got {text[:80]!r}")
        return cls(policy, int(sides[0]), max_pixels, multiple)

    def __str__(self) -> str:
        return self.policy if self.side is None else f"{self.policy}:{self.side}"

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) after resizing an image of the given height and width.

        Raises:
            ValueError: a side is below 1.
        """
        if height < 1 or width < 1:
            raise ValueError(f"height, width: expected at least 1, got {height} x {width}")
        height, width = self._exact_size(height, width)
        if self.multiple == 1:
            return height, width
        rounded = nearest_multiple(height, self.multiple), nearest_multiple(width, self.multiple)
        if height * width <= self.max_pixels < rounded[0] * rounded[1]:
            return tuple(max(side // self.multiple, 1) * self.multiple for side in (height, width))  # type: ignore[return-value]
        return rounded

    def _exact_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) before rounding to multiples."""
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
        """Resize an image, with antialiasing when shrinking.

        Args:
            image: an RGB image, as returned by `sppnet.data.images.load_image`.
            interpolation: ``bilinear`` or ``bicubic``.

        Returns:
            A new image of size `target_size`; if the size does not change, its pixels are identical.

        Raises:
            ValueError: the image is not RGB, or the interpolation is unknown.
        """
        if interpolation not in _FILTERS:
            raise ValueError(f"interpolation: expected one of {', '.join(_FILTERS)}, got {interpolation!r}")
        if image.mode != "RGB":  # for palette images Pillow falls back to nearest-neighbor interpolation
            raise ValueError(f"image: expected mode RGB, as returned by load_image, got mode {image.mode}")
        height, width = self.target_size(image.height, image.width)
        box = self.crop_box(image.height, image.width) if self.policy == "center-crop" else None
        return image.resize((width, height), _FILTERS[interpolation], box)

    @property
    def _side(self) -> int:
        if self.side is None:
            raise ValueError(f"resize: policy {self.policy} has no side")
        return self.side

    def crop_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return the (left, top, right, bottom) that ``center-crop`` crops from an image of this size, in its pixels.

        Resizing only this box equals resizing the whole image and then cropping, up to the rounding between Pillow's
        two passes, but avoids the intermediate image, which would be huge for a long thin image.
        """
        full_height, full_width = _shorter_side(height, width, _divide(8 * self._side, 7))  # size before cropping
        top, left = (full_height - self._side) // 2, (full_width - self._side) // 2
        return (
            left * width / full_width,
            top * height / full_height,
            (left + self._side) * width / full_width,
            (top + self._side) * height / full_height,
        )


def nearest_multiple(side: int, multiple: int) -> int:
    """Round a side to the nearest multiple, halves up, but at least to the first."""
    return max(_divide(side, multiple), 1) * multiple


def _divide(numerator: int, denominator: int) -> int:
    """Divide positive integers, rounding to the nearest, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def _shorter_side(height: int, width: int, side: int) -> tuple[int, int]:
    if height <= width:
        return side, _divide(width * side, height)
    return _divide(height * side, width), side


def _within(height: int, width: int, aspect_height: int, aspect_width: int, max_pixels: int) -> tuple[int, int]:
    """Return the size if it has at most ``max_pixels``, or else the largest such size of the given aspect ratio."""
    if height * width <= max_pixels:
        return height, width
    # Integer arithmetic makes the limit exact: h = sqrt(max_pixels * H / W), rounded down. If that sets one side of a
    # very long thin image to 1, the limit applies to the other.
    height = max(1, math.isqrt(max_pixels * aspect_height // aspect_width))
    width = max(1, math.isqrt(max_pixels * aspect_width // aspect_height))
    return min(height, max_pixels), min(width, max_pixels)
