"""Thin Modules over the operators."""

from collections.abc import Sequence
from typing import get_args

from jaxtyping import Float
from torch import Tensor, nn

from sppnet.bins import Level, Rule, choose, count_bins, parse_levels
from sppnet.ops.plain import Reduce
from sppnet.ops.pyramid import Sizes, pyramid_pool


class SpatialPyramidPool(nn.Module):
    """Any (N, C, H, W) in, (N, C * bins) out. See :func:`sppnet.pyramid_pool`."""

    def __init__(self, levels: Sequence[Level], reduce: Reduce = "max", rule: Rule = "adaptive") -> None:
        super().__init__()
        parse_levels(levels)
        choose("reduce", reduce, get_args(Reduce))
        choose("rule", rule, get_args(Rule))
        self.levels = tuple(levels)
        self.reduce: Reduce = reduce
        self.rule: Rule = rule

    @property
    def bins(self) -> int:
        """Bins of all levels together: the vector's length for one channel."""
        return count_bins(self.levels)

    def forward(self, x: Float[Tensor, "n c h w"], sizes: Sizes | None = None) -> Float[Tensor, "n d"]:
        """Pool; `sizes` as in :func:`sppnet.pyramid_pool`."""
        return pyramid_pool(x, self.levels, reduce=self.reduce, rule=self.rule, sizes=sizes)

    def extra_repr(self) -> str:
        """Levels, reduction and rule, for print(module)."""
        return f"levels={self.levels}, reduce={self.reduce!r}, rule={self.rule!r}"
