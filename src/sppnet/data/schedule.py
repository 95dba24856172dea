"""Sizes of training images by epoch."""

import random
import re
from dataclasses import dataclass

from sppnet.data.resize import MAX_SIDE


@dataclass(frozen=True)
class Schedule:
    """Sizes of the training images by epoch (SPP-net, section 2.3).

    Attributes:
        sides: ``(224,)`` for one size, ``(180, 224)`` for sides that alternate by epoch, the smallest and the largest
            side if `drawn`, empty for native sizes.
        drawn: draw a side for each epoch, uniformly between the two `sides` (inclusive).
    """

    sides: tuple[int, ...]
    drawn: bool = False

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Read ``224``, ``180,224``, ``180-224`` or ``native``.

        Raises:
            ValueError: invalid text, or a side outside 1..8192.
        """
        compact = text.replace(" ", "")
        if compact == "native":
            return cls(())
        if not re.fullmatch(r"\d+(-\d+|(,\d+)*)", compact):
            raise ValueError(f"sizes: expected 224, 180,224, 180-224 or native, got {text!r}")
        sides = tuple(int(side) for side in re.split("[-,]", compact))
        if not all(1 <= side <= MAX_SIDE for side in sides) or ("-" in compact and sides[0] > sides[1]):
            raise ValueError(f"sizes: expected sides of 1..{MAX_SIDE} pixels, ranges as MIN-MAX, got {text!r}")
        return cls(sides, drawn="-" in compact)

    def side(self, epoch: int, seed: int) -> int | None:
        """Return the side of the square training images of an epoch, or None for native sizes."""
        if not self.sides:
            return None
        if self.drawn:
            return random.Random(f"side {seed} {epoch}").randint(*self.sides)  # noqa: S311
        return self.sides[epoch % len(self.sides)]
