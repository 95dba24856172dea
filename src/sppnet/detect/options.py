"""Settings of a detector's training."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from sppnet.backbones.backbone import Backbone, create_backbone, stage_of_stride
from sppnet.backbones.weights import EMBEDDED_BACKBONE
from sppnet.detect.model import DetectorConfig, Method, Regression, Scorer
from sppnet.detect.proposals import is_box_file
from sppnet.errors import choose, require_positive
from sppnet.features.encoder import ScaleRule
from sppnet.ops.bins import CellRule, Level, parse_levels
from sppnet.ops.reference import Reduce
from sppnet.training.options import LoopOptions

# Options that a method does not use.
_IDLE: dict[Method, tuple[str, ...]] = {
    "spp": (),
    "rcnn": ("scales", "rule", "scale_rule"),
    "fast": ("levels", "rule", "scorer", "finetune", "steps"),
}


@dataclass(frozen=True)
class DetectOptions(LoopOptions):
    """Settings of a detector's training.

    Attributes:
        method: ``spp``: vectors from one pass an image, fc layers fine-tuned, SVMs, ridge regression of boxes;
            ``rcnn``: the same with one pass a window; ``fast``: Fast R-CNN, the convolutions trained too.
        backbone, stage, weights: see :func:`sppnet.backbones.backbone.create_backbone`; a stage of None is the last one of
            stride 16.
        levels, scales, rule, reduce, scale_rule: see :class:`sppnet.RegionEncoder`.
        hidden: outputs of fc6 and fc7; none scores the pooled vectors.
        finetune: train the fc layers; otherwise they stay as they are drawn.
        mirror: fine-tune on mirror images too, which have features of their own.
        scorer: ``svm``, or ``softmax``: the fine-tuned layer itself.
        regression: of boxes, on or off.
        proposals, windows, proposal_seconds: where windows come from, how many an image has at most and how long they
            are searched for, see :func:`sppnet.detect.proposals.proposals_of`.
        steps: batches of an epoch of fine-tuning.
        workers: images that are searched for proposals at a time.
        cache: for proposals and features, None for the run folder; runs may share it.
    """

    method: Method = "spp"
    backbone: str = EMBEDDED_BACKBONE
    stage: int | None = None
    weights: str = "auto"
    levels: tuple[Level, ...] = (6, 3, 2, 1)
    scales: tuple[int, ...] = (688,)
    rule: CellRule = "paper"
    reduce: Reduce = "max"
    scale_rule: ScaleRule = "paper"
    hidden: tuple[int, ...] = (1024, 1024)
    finetune: bool = True
    mirror: bool = True
    scorer: Scorer = "svm"
    regression: bool = True
    proposals: str = "selective-search,grid"
    windows: int = 2000
    proposal_seconds: float | None = None
    epochs: int = 10
    batch: int = 128
    steps: int = 100
    workers: int = 2
    cache: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (
            ("method", get_args(Method)),
            ("rule", get_args(CellRule)),
            ("reduce", get_args(Reduce)),
            ("scale_rule", get_args(ScaleRule)),
            ("scorer", get_args(Scorer)),
        ):
            choose(name, getattr(self, name), choices)
        require_positive(self, "windows", "steps", "workers")
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        for name in _IDLE[self.method]:
            if getattr(self, name) != fields[name]:
                raise ValueError(
                    f"{name}: the method {self.method!r} does not use it; expected {fields[name]!r}, the default; got"
                    f" {getattr(self, name)!r}"
                )
        if self.method == "fast" and not self.regression:
            raise ValueError("regression: Fast R-CNN trains scores and boxes together; it cannot be left out")
        if is_box_file(self.proposals):  # a run knows the file from everywhere
            object.__setattr__(self, "proposals", str(Path(self.proposals).resolve()))
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden: expected sizes of at least 1; got {self.hidden}")
        if self.scorer == "softmax" and not (self.hidden and self.finetune):
            raise ValueError("scorer: a softmax is trained with the fc layers; it needs hidden sizes and finetune")
        parse_levels(self.levels)

    def create_backbone(self) -> Backbone:
        """The network that these settings name, cut off at its map."""
        stage = stage_of_stride(self.backbone, 16) if self.stage is None else self.stage
        return create_backbone(self.backbone, stage, self.weights)

    def config(self, classes: tuple[str, ...], stage: int | None) -> DetectorConfig:
        """The detector that these settings train, on this stage of the backbone."""
        fast = self.method == "fast"
        regression: Regression = "fc" if fast else "pool"
        return DetectorConfig(
            classes=classes,
            method=self.method,
            backbone=self.backbone,
            stage=stage,
            levels=(7,) if fast else self.levels,
            scales=self.scales,
            rule="roi_pool" if fast else self.rule,
            reduce=self.reduce,
            scale_rule=self.scale_rule,
            hidden=self.hidden,
            scorer="softmax" if fast else self.scorer,
            regression=regression if self.regression else "none",
            proposals=self.proposals,
            windows=self.windows,
            proposal_seconds=self.proposal_seconds,
        )
