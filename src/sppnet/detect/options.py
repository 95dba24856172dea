"""Training options of detectors, and the names of methods and scorers; importable without torch."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.errors import check_choice, require_positive
from sppnet.features.options import ScaleRule
from sppnet.ops.levels import CellRule, Level, Reduce, parse_levels
from sppnet.training.options import LoopOptions

Method = Literal["spp", "rcnn", "fast"]
Scorer = Literal["svm", "softmax"]
Regression = Literal["none", "pool", "fc"]

# Default of the lowest score to report. The authors' demo shows SVM scores from -0.5.
DEFAULT_MIN_SCORES: dict[Scorer, float] = {"svm": -0.5, "softmax": 0.5}

_BOX_FILES = (".csv", ".jsonl", ".json")
# Options without effect; only their defaults are accepted.
_UNUSED: dict[Method, tuple[str, ...]] = {
    "spp": (),
    "rcnn": ("scales", "cell_rule", "scale_rule"),
    "fast": ("levels", "cell_rule", "scorer", "finetune", "steps"),
}


@dataclass(frozen=True)
class DetectOptions(LoopOptions):
    """Training options of a detector.

    Attributes:
        method: ``spp``: one forward pass per image, fine-tuned fc layers, SVMs and ridge regression of boxes;
            ``rcnn``: the same with one forward pass per window; ``fast``: Fast R-CNN, which also trains the backbone.
        backbone, stage, weights: arguments of :func:`sppnet.backbones.backbone.create_backbone`; a stage of None
            selects the last one of stride 16.
        levels, scales, cell_rule, reduce, scale_rule: arguments of :class:`sppnet.RegionEncoder`; `cell_rule` is its
            `rule`.
        hidden: output sizes of fc6 and fc7; empty to score the pooled vectors.
        finetune: train the fc layers; otherwise they keep their random initialization.
        mirror: train on horizontally mirrored images too, which have their own cached features.
        scorer: ``svm``, or ``softmax`` for the output layer of the fine-tuning.
        regression: train box regression.
        train_stages: ``auto``, or what the method trains: ``0`` for ``spp`` and ``rcnn``, ``all`` for ``fast``.
        proposals, windows, proposal_seconds: proposal source, maximum number of windows per image and time limit of
            the search, see :func:`sppnet.detect.proposals.iter_proposals`.
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
    cell_rule: CellRule = "paper"
    reduce: Reduce = "max"
    scale_rule: ScaleRule = "paper"
    hidden: tuple[int, ...] = (1024, 1024)
    finetune: bool = True
    mirror: bool = True
    train_stages: str = "auto"
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
            ("cell_rule", get_args(CellRule)),
            ("reduce", get_args(Reduce)),
            ("scale_rule", get_args(ScaleRule)),
            ("scorer", get_args(Scorer)),
        ):
            check_choice(name, getattr(self, name), choices)
        self._check_training()
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
        # Absolute paths, so that the run can be used and resumed from any working directory.
        if is_box_file(self.proposals):
            object.__setattr__(self, "proposals", str(Path(self.proposals).resolve()))
        if self.weights.endswith(".safetensors"):
            object.__setattr__(self, "weights", str(Path(self.weights).resolve()))
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden: expected sizes of at least 1, got {self.hidden}")
        if self.scorer == "softmax" and not (self.hidden and self.finetune):
            raise ValueError("scorer: expected svm, got softmax; a softmax requires hidden sizes and finetune")
        parse_levels(self.levels)
        check_processes(self.method, self.devices * self.nodes)

    def _check_training(self) -> None:
        for name in ("monitor", "patience"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}: expected no value, because detectors are validated once, after training, got"
                    f" {getattr(self, name)!r}; omit it"
                )
        stages = "all" if self.method == "fast" else "0"
        if self.train_stages not in ("auto", stages):
            reason = (
                "Fast R-CNN trains all convolutions except the first ones"
                if self.method == "fast"
                else "the method trains on vectors of frozen convolutions, unlike the method 'fast'"
            )
            raise ValueError(
                f"train_stages: expected {stages} for the method {self.method!r}, got {self.train_stages}; {reason}"
            )
        object.__setattr__(self, "train_stages", "auto")


def check_processes(method: Method, count: int) -> None:
    """Check that a detector can be trained in this number of processes by this method."""
    if method == "fast" and count > 2:
        raise ValueError(f"devices: expected 1 or 2 for the method 'fast', whose batches have two images, got {count}")


def is_box_file(source: str) -> bool:
    """Return whether a source of proposals is a file of boxes rather than the name of a search."""
    return Path(source).suffix.lower() in _BOX_FILES
