"""Formats of boxes in box files, and the handling of bad boxes; importable without torch."""

from typing import Literal

BoxFormat = Literal["xyxy", "xywh", "xyxy-normalised", "xywh-normalised"]
OnBad = Literal["raise", "clip", "drop"]
