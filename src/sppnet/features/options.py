"""Configuration of region encoders, and names of file formats and dtypes."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.errors import check_choice
from sppnet.ops.levels import CellRule, Level, Reduce, parse_levels

ScaleRule = Literal["paper", "released"]
Storage = Literal["safetensors", "parquet"]
Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class RegionEncoderConfig:
    """Configuration of a region encoder: everything except the weights.

    Attributes:
        backbone, stage: arguments of :func:`sppnet.create_backbone`.
        levels: pyramid levels, n for n x n bins or (rows, columns).
        scales: shorter sides of the network input, in pixels; if there are several, each box is pooled at the one that
            :func:`sppnet.features.encoder.choose_scales` selects.
        max_side: maximum longer side of the network input, in pixels; it overrides the scale.
        rule: conversion of boxes into cells, see :func:`sppnet.region_pyramid_pool`.
        reduce: ``max`` or ``avg``.
        scale_rule: ``paper`` or ``released``, see :func:`sppnet.features.encoder.choose_scales`.
    """

    task: ClassVar[str] = "features"

    backbone: str = EMBEDDED_BACKBONE
    stage: int | None = None
    levels: tuple[Level, ...] = (6, 3, 2, 1)
    scales: tuple[int, ...] = (688,)
    max_side: int = 2000
    rule: CellRule = "paper"
    reduce: Reduce = "max"
    scale_rule: ScaleRule = "paper"

    def __post_init__(self) -> None:
        parse_levels(self.levels)
        check_choice("rule", self.rule, get_args(CellRule))
        check_choice("reduce", self.reduce, get_args(Reduce))
        check_choice("scale_rule", self.scale_rule, get_args(ScaleRule))
