"""Training options of detectors."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from sppnet.backbones.backbone import Backbone, create_backbone, stage_of_stride
from sppnet.backbones.weights import EMBEDDED_BACKBONE
from sppnet.detect.model import DetectorConfig, Method, Regression, Scorer
from sppnet.detect.proposals import is_box_file
from sppnet.errors import check_choice, require_positive
from sppnet.features.encoder import ScaleRule
from sppnet.ops.bins import CellRule, Level, parse_levels
from sppnet.ops.reference import Reduce
from sppnet.training.options import LoopOptions

# Options without effect; only their defaults are accepted.
_UNUSED: dict[Method, tuple[str, ...]] = {
    "spp": (),
    "rcnn": ("scales", "rule", "scale_rule"),
    "fast": ("levels", "rule", "scorer", "finetune", "steps"),
}


@dataclass(frozen=True)
class DetectOptions(LoopOptions):
    """Training options of a detector.

    Attributes:
        method: ``spp``: one forward pass per image, fine-tuned fc layers, SVMs and ridge regression of boxes;
            ``rcnn``: the same with one forward pass per window; ``fast``: Fast R-CNN, which also trains the backbone.
        backbone, stage, weights: arguments of :func:`sppnet.backbones.backbone.create_backbone`; a stage of None
            selects the last one of stride 16.
        levels, scales, rule, reduce, scale_rule: arguments of :class:`sppnet.RegionEncoder`.
        hidden: output sizes of fc6 and fc7; empty to score the pooled vectors.
        finetune: train the fc layers; otherwise they keep their random initialization.
        mirror: train on horizontally mirrored images too, which have their own cached features.
        scorer: ``svm``, or ``softmax`` for the output layer of the fine-tuning.
        regression: train box regression.
        proposals, windows, proposal_seconds: proposal source, maximum number of windows per image and time limit of
            the search, see :func:`sppnet.detect.proposals.propose_all`.
        steps: batches per epoch of fine-tuning.
        workers: images searched for proposals in parallel.
        cache: folder for proposals and features, which runs may share; None for the run folder.
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
            check_choice(name, getattr(self, name), choices)
        require_positive(self, "windows", "steps", "workers")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in _UNUSED[self.method]:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}: expected the default {defaults[name]!r}, got {getattr(self, name)!r}; the method"
                    f" {self.method!r} does not use this option"
                )
        if self.method == "fast" and not self.regression:
            raise ValueError("regression: expected True, got False; Fast R-CNN trains scores and boxes together")
        if is_box_file(self.proposals):  # absolute, so that the run is usable from any working directory
            object.__setattr__(self, "proposals", str(Path(self.proposals).resolve()))
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden: expected sizes of at least 1, got {self.hidden}")
        if self.scorer == "softmax" and not (self.hidden and self.finetune):
            raise ValueError("scorer: expected svm, got softmax; a softmax requires hidden sizes and finetune")
        parse_levels(self.levels)

    def create_backbone(self) -> Backbone:
        """Create the backbone, cut off at the selected stage."""
        stage = stage_of_stride(self.backbone, 16) if self.stage is None else self.stage
        return create_backbone(self.backbone, stage, self.weights)

    def config(self, classes: tuple[str, ...], stage: int | None) -> DetectorConfig:
        """Return the configuration of the detector to train, for a backbone cut off at `stage`."""
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
