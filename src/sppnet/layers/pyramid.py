"""Modules that wrap the pooling operators."""

from collections.abc import Sequence
from typing import get_args

from jaxtyping import Float, Int
from torch import Tensor, nn

from sppnet.errors import check_choice
from sppnet.ops.levels import CellRule, Level, Reduce, Rule, count_bins, parse_levels
from sppnet.ops.pyramid import Sizes, pyramid_pool
from sppnet.ops.regions import (
    Boxes,
    OnBad,
    parse_offset,
    parse_scale,
    region_pyramid_pool,
)


class SpatialPyramidPool(nn.Module):
    """Pooling of (N, C, H, W) maps of any size to (N, C * bins) vectors, see :func:`sppnet.pyramid_pool`."""

    def __init__(self, levels: Sequence[Level], reduce: Reduce = "max", rule: Rule = "adaptive") -> None:
        super().__init__()
        parse_levels(levels)
        check_choice("reduce", reduce, get_args(Reduce))
        check_choice("rule", rule, get_args(Rule))
        self.levels = tuple(levels)
        self.reduce: Reduce = reduce
        self.rule: Rule = rule

    @property
    def bins(self) -> int:
        """Total number of bins of all levels, which is the vector length per channel."""
        return count_bins(self.levels)

    def forward(self, x: Float[Tensor, "n c h w"], sizes: Sizes | None = None) -> Float[Tensor, "n d"]:
        """Pool each map; `sizes` as in :func:`sppnet.pyramid_pool`."""
        return pyramid_pool(x, self.levels, reduce=self.reduce, rule=self.rule, sizes=sizes)

    def extra_repr(self) -> str:
        """Return the levels, the reduction and the rule for ``print(module)``."""
        return f"levels={self.levels}, reduce={self.reduce!r}, rule={self.rule!r}"


class RegionPyramidPool(nn.Module):
    """Pooling of K boxes on (N, C, H, W) maps to (K, C * bins) vectors, see :func:`sppnet.region_pyramid_pool`."""

    def __init__(
        self,
        levels: Sequence[Level] = (6, 3, 2, 1),
        spatial_scale: float | tuple[float, float] = 1 / 16,
        rule: CellRule = "paper",
        offset: float | tuple[float, float] = 0.0,
        reduce: Reduce = "max",
        on_bad: OnBad = "raise",
    ) -> None:
        super().__init__()
        parse_levels(levels)
        check_choice("rule", rule, get_args(CellRule))
        check_choice("reduce", reduce, get_args(Reduce))
        check_choice("on_bad", on_bad, get_args(OnBad))
        self.levels = tuple(levels)
        self.spatial_scale = parse_scale(spatial_scale)
        self.rule: CellRule = rule
        self.offset = parse_offset(offset)
        self.reduce: Reduce = reduce
        self.on_bad: OnBad = on_bad

    @property
    def bins(self) -> int:
        """Total number of bins of all levels, which is the vector length per channel."""
        return count_bins(self.levels)

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        boxes: Boxes,
        sizes: Sizes | None = None,
        box_offsets: Int[Tensor, " _"] | None = None,
    ) -> Float[Tensor, "k d"]:
        """Pool each box; `boxes`, `sizes` and `box_offsets` as in :func:`sppnet.region_pyramid_pool`."""
        return region_pyramid_pool(
            x,
            boxes,
            self.levels,
            self.spatial_scale,
            self.rule,
            offset=self.offset,
            reduce=self.reduce,
            sizes=sizes,
            box_offsets=box_offsets,
            on_bad=self.on_bad,
        )

    def extra_repr(self) -> str:
        """Return the constructor arguments for ``print(module)``."""
        return (
            f"levels={self.levels}, spatial_scale={self.spatial_scale}, rule={self.rule!r}, offset={self.offset},"
            f" reduce={self.reduce!r}, on_bad={self.on_bad!r}"
        )
