"""Names of normalization layers."""

from typing import Literal

Norm = Literal["safe", "batch", "group"]
