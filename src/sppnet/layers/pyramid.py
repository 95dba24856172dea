"""Thin Modules over the operators."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.atrous import LiveTaps, atrous_conv, auto_rates, is_plain, live_taps, parse_rates, warn_of_dead_taps
from sppnet.bins import CellRule, Level, Rule, choose, count_bins, parse_levels
from sppnet.blocks import Norm, conv_block
from sppnet.ops.plain import Reduce
from sppnet.ops.pyramid import Sizes, pyramid_pool
from sppnet.ops.regions import Boxes, OnBad, parse_offset, parse_scale, region_pyramid_pool
from sppnet.ops.sliding_max import in_graph, parse_kernels, sliding_max

Order = Literal["input-first", "darknet"]


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
        """How many bins all levels have together, which is the vector's length for one channel."""
        return count_bins(self.levels)

    def forward(self, x: Float[Tensor, "n c h w"], sizes: Sizes | None = None) -> Float[Tensor, "n d"]:
        """Pool; `sizes` as in :func:`sppnet.pyramid_pool`."""
        return pyramid_pool(x, self.levels, reduce=self.reduce, rule=self.rule, sizes=sizes)

    def extra_repr(self) -> str:
        """Levels, reduction and rule, for print(module)."""
        return f"levels={self.levels}, reduce={self.reduce!r}, rule={self.rule!r}"


class RegionPyramidPool(nn.Module):
    """Maps and boxes in, (K, C * bins) out. See :func:`sppnet.region_pyramid_pool`."""

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
        choose("rule", rule, get_args(CellRule))
        choose("reduce", reduce, get_args(Reduce))
        choose("on_bad", on_bad, get_args(OnBad))
        self.levels = tuple(levels)
        self.spatial_scale = parse_scale(spatial_scale)
        self.rule: CellRule = rule
        self.offset = parse_offset(offset)
        self.reduce: Reduce = reduce
        self.on_bad: OnBad = on_bad

    @property
    def bins(self) -> int:
        """How many bins all levels have together, which is the vector's length for one channel."""
        return count_bins(self.levels)

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        boxes: Boxes,
        sizes: Sizes | None = None,
        box_offsets: Int[Tensor, " _"] | None = None,
    ) -> Float[Tensor, "k d"]:
        """Pool; `boxes`, `sizes` and `box_offsets` as in :func:`sppnet.region_pyramid_pool`."""
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
        """What the constructor was given, for print(module)."""
        return (
            f"levels={self.levels}, spatial_scale={self.spatial_scale}, rule={self.rule!r}, offset={self.offset},"
            f" reduce={self.reduce!r}, on_bad={self.on_bad!r}"
        )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 3x3 convolutions of several rates side by side; the map keeps its size.

    Args:
        in_channels: channels that come.
        out_channels: channels that go; in the form ``v2`` the classes.
        rates: spacings of the taps in cells, each at least 1, any number of them; ``auto`` for the papers', see
            :func:`sppnet.atrous.auto_rates`.
        form: ``v3`` (DeepLab v3, section 3.3): a 1x1 branch, the atrous branches and the image-level branch, each with
            normalisation and ReLU, concatenated in this order and projected by 1x1. ``v2`` (DeepLab v2, section 3.3,
            ResNet form): the sum of atrous convolutions with bias and nothing else.
        output_stride: image pixels from one cell to the next, for ``auto``.
        map_size: (rows, columns) of the maps that it will mostly see, to which ``auto`` then fits the rates.
        norm: see :func:`sppnet.blocks.create_norm`; the default trains at batch 1.
        separable: depthwise separable atrous branches (DeepLab v3+, section 3.1).
        image_level: whether the form ``v3`` has its image-level branch.
        dropout: share of the projected channels that training drops, in [0, 1).

    Raises:
        ValueError: a rate below 1, no rate, or an option that the form ``v2`` has not.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        rates: Sequence[int] | Literal["auto"] = "auto",
        *,
        form: Literal["v3", "v2"] = "v3",
        output_stride: int = 16,
        map_size: Sequence[int] | None = None,
        norm: Norm = "safe",
        separable: bool = False,
        image_level: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        choose("form", form, ("v3", "v2"))
        if isinstance(rates, str):
            choose("rates", rates, ("auto",))
            rates = auto_rates(output_stride, map_size, form)
        choose("norm", norm, get_args(Norm))
        self.rates = parse_rates(rates)
        self.image: nn.Sequential | None = None
        self.project: nn.Sequential | None = None
        if form == "v2":
            if separable or dropout:
                raise ValueError("form: 'v2' is a plain sum of convolutions; separable and dropout need form='v3'")
            self.branches = nn.ModuleList(_v2_branch(in_channels, out_channels, rate) for rate in self.rates)
            return
        atrous = [conv_block(in_channels, out_channels, 3, norm, rate=r, separable=separable) for r in self.rates]
        self.branches = nn.ModuleList([conv_block(in_channels, out_channels, 1, norm), *atrous])
        if image_level:
            self.image = conv_block(in_channels, out_channels, 1, norm)
        inside = out_channels * (len(self.branches) + image_level)
        self.project = conv_block(inside, out_channels, 1, norm).append(nn.Dropout(dropout))

    def forward(
        self, x: Float[Tensor, "n c h w"], context: Float[Tensor, "n c 1 1"] | None = None
    ) -> Float[Tensor, "n out h w"]:
        """Convolve.

        Args:
            x: the map.
            context: what the image-level branch sees instead of the means of `x`, where `x` is of a part of an image;
                :meth:`context_of` of a map of the whole.
        """
        if context is not None and self.image is None:
            raise ValueError("context: this module has no image-level branch that could use it; leave context out")
        if context is not None and context.shape != (*x.shape[:2], 1, 1):
            raise ValueError(f"context: expected {(*x.shape[:2], 1, 1)}, as of x; got {tuple(context.shape)}")
        if self.training and not in_graph():
            warn_of_dead_taps(self.rates, x.shape[2:])
        maps = [_apply(branch, x) for branch in self.branches]
        if self.project is None:
            return torch.stack(maps).sum(0)
        conv, *rest = self.project
        joined = torch.cat(maps, 1)
        if self.image is None:
            out: Tensor = conv(joined)
        elif not is_plain(conv):
            image = self.image(self.context_of(x) if context is None else context)
            out = conv(torch.cat([joined, image.expand(-1, -1, *x.shape[2:])], 1))
        else:
            # The image-level branch is the same in all places, so its part of the projection is made once.
            image = self.image(self.context_of(x) if context is None else context)
            weight, image_weight = conv.weight.split((joined.shape[1], image.shape[1]), 1)  # type: ignore[operator]
            out = F.conv2d(joined, weight) + F.conv2d(image, image_weight)
        for layer in rest:
            out = layer(out)
        return out

    @staticmethod
    def context_of(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 1 1"]:
        """What the image-level branch sees of a map: the mean of each channel."""
        return x.mean((2, 3), keepdim=True)

    def explain(self, size: Sequence[int]) -> tuple[LiveTaps, ...]:
        """How much a map of (rows, columns) cells leaves of each atrous branch.

        Warns of the branches of which less than :data:`sppnet.atrous.LEAST_LIVE` is left, as training does.
        """
        warn_of_dead_taps(self.rates, size)
        return tuple(live_taps(rate, size) for rate in self.rates)

    def extra_repr(self) -> str:
        """Rates, for print(module)."""
        return f"rates={self.rates}"


def _v2_branch(in_channels: int, out_channels: int, rate: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _apply(branch: nn.Module, x: Tensor) -> Tensor:
    """The branch on the map, its first convolution without taps that cannot lie on the map."""
    if isinstance(branch, nn.Conv2d):
        return atrous_conv(branch, x)
    conv, *rest = branch.children()
    out = atrous_conv(conv, x)  # type: ignore[arg-type]
    for layer in rest:
        out = layer(out)
    return out


class PyramidPoolingModule(nn.Module):
    """Pyramid pooling module of PSPNet (section 3.2): the map, and beside it what each level's bins hold.

    Each level is pooled to n x n bins, convolved by 1x1 with normalisation and ReLU, and spread over the map again,
    bilinearly between the corners' bins. A map (N, C, H, W) becomes (N, C + levels * out_channels, H, W).

    Args:
        in_channels: channels that come.
        levels: n for n x n bins, or (rows, columns), each at least 1.
        out_channels: channels of each level; None for an equal share of `in_channels`.
        reduce: ``avg`` as in PSPNet, or ``max``.
        norm: see :func:`sppnet.blocks.create_norm`; the default trains at batch 1.

    Raises:
        ValueError: more levels than channels and no `out_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        levels: Sequence[Level] = (1, 2, 3, 6),
        out_channels: int | None = None,
        reduce: Reduce = "avg",
        norm: Norm = "safe",
    ) -> None:
        super().__init__()
        choose("reduce", reduce, get_args(Reduce))
        self.grids = parse_levels(levels)
        width = in_channels // len(self.grids) if out_channels is None else out_channels
        if width < 1:
            raise ValueError(
                f"out_channels: {in_channels} channels give {len(self.grids)} levels no equal share; name a number"
            )
        self.reduce: Reduce = reduce
        self.out_channels = in_channels + width * len(self.grids)
        self.branches = nn.ModuleList(conv_block(in_channels, width, 1, norm) for _ in self.grids)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h w"]:
        """Pool, convolve, spread, concatenate behind the map itself."""
        vectors = pyramid_pool(x, self.grids, reduce=self.reduce)
        sizes = [x.shape[1] * rows * columns for rows, columns in self.grids]
        parts = [x]
        for branch, vector, grid in zip(self.branches, vectors.split(sizes, 1), self.grids, strict=True):
            bins = branch(vector.reshape(x.shape[0], x.shape[1], *grid))
            parts.append(F.interpolate(bins, size=x.shape[2:], mode="bilinear", align_corners=True))
        return torch.cat(parts, 1)

    def extra_repr(self) -> str:
        """Levels and reduction, for print(module)."""
        return f"levels={self.grids}, reduce={self.reduce!r}"


class SPP(nn.Module):
    """YOLO's spatial pyramid pooling: beside the map its maxima over windows around each cell; the size stays.

    This is not the paper's layer, which gives a vector of one length: see :class:`SpatialPyramidPool`. A window of
    k >= 2 * side - 1 sees the whole side, so on maps of up to 7 x 7 cells that of 13 is the global maximum.

    A 1x1 convolution halves the channels, the maxima are set beside its result, and a 1x1 convolution leads to
    `out_channels`; both have normalisation and activation. How the maxima are computed depends on the map alone, see
    :func:`sppnet.ops.sliding_max.sliding_max`.

    Args:
        in_channels: channels that come, at least 2.
        out_channels: channels that go.
        kernels: sides of the windows in cells, odd, each larger than the one before.
        order: how the second convolution finds its input: ``input-first``, the map and then the maxima by size
            (YOLOv5 and later), or ``darknet``, the largest window first and the map last (YOLOv4).
        norm: see :func:`sppnet.blocks.create_norm`; the default trains at batch 1.
        activation: makes the activation; Darknet has leaky ReLU or Mish.

    Raises:
        ValueError: an unknown order, fewer than 2 channels, or wrong kernels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernels: Sequence[int] = (5, 9, 13),
        *,
        order: Order = "input-first",
        norm: Norm = "safe",
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        choose("order", order, get_args(Order))
        if in_channels < 2:
            raise ValueError(f"in_channels: expected at least 2, to be halved; got {in_channels}")
        self.kernels = parse_kernels(kernels)
        self.order: Order = order
        half = in_channels // 2
        self.halve = conv_block(in_channels, half, 1, norm, activation=activation)
        self.join = conv_block(half * (1 + len(self.kernels)), out_channels, 1, norm, activation=activation)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h w"]:
        """Halve, pool, concatenate, convolve."""
        x = self.halve(x)
        maps = [x, *sliding_max(x, self.kernels)]
        if self.order == "darknet":
            maps.reverse()
        out: Tensor = self.join(torch.cat(maps, 1))
        return out

    def extra_repr(self) -> str:
        """Windows and order, for print(module)."""
        return f"kernels={self.kernels}, order={self.order!r}"


class SPPF(SPP):
    """:class:`SPP` by the name and arguments of YOLOv5's faster form, which pools its own result again.

    ``SPPF(kernel=k, repeats=n)`` is ``SPP(kernels=(k, 2 * k - 1, 3 * k - 2, ...))`` with n windows: the same weights
    give the same map, and neither is faster, since both take the fastest exact way.

    Args:
        in_channels, out_channels, order, norm, activation: as in :class:`SPP`.
        kernel: side of the window that is pooled again and again, odd, at least 3.
        repeats: how often, at least 1.

    Raises:
        ValueError: an even or too small kernel, no repeats, or what :class:`SPP` refuses.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 5,
        repeats: int = 3,
        *,
        order: Order = "input-first",
        norm: Norm = "safe",
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        if kernel < 3 or kernel % 2 == 0:
            nearest = f"{kernel - 1} or {kernel + 1}" if kernel > 3 else "3"
            raise ValueError(
                f"kernel: expected an odd side of at least 3; got {kernel}; next that is possible: {nearest}"
            )
        if repeats < 1:
            raise ValueError(f"repeats: expected at least 1; got {repeats}")
        kernels = [1 + (kernel - 1) * times for times in range(1, repeats + 1)]
        super().__init__(in_channels, out_channels, kernels, order=order, norm=norm, activation=activation)
