"""Training options of two-stage detectors; importable without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.errors import check_choice, require_positive
from sppnet.ops.levels import Level, parse_levels
from sppnet.training.options import LoopOptions


@dataclass(frozen=True)
class TwoStageOptions(LoopOptions):
    """Training options of a two-stage detector.

    Attributes:
        method: ``two-stage``.
        backbone, weights: arguments of :func:`sppnet.backbones.backbone.create_backbone`.
        levels, side, max_side, dropout, windows: see
            :class:`sppnet.detect.two_stage.network.TwoStageConfig`.
        cache: folder of the maps of a frozen backbone, which runs may share; None for the run folder.
        cache_limit: largest size of the cache, in GB.
        workers: processes that decode images if stages of the backbone are trained.
    """

    SCORES: ClassVar[tuple[str, ...]] = ("map", "ap50")

    method: Literal["two-stage"] = "two-stage"
    backbone: str = EMBEDDED_BACKBONE
    weights: str = "auto"
    levels: tuple[Level, ...] = (6, 3, 2, 1)
    side: int = 480
    max_side: int = 1000
    dropout: float = 0.4
    windows: int = 1000
    epochs: int = 12
    batch: int = 4
    lr: float | None = 2e-3
    warmup_epochs: float = 0.5
    ema: float | None = 0.99
    train_stages: str = "0"
    cache: str | None = None
    cache_limit: float = 20.0
    workers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("method", self.method, ("two-stage",))
        require_positive(self, "side", "windows", "cache_limit", "workers")
        if self.max_side < self.side:
            raise ValueError(f"max_side: expected at least the side {self.side}, got {self.max_side}")
        if self.label_smoothing:
            raise ValueError(
                f"label_smoothing: expected no value, because a two-stage detector smooths its labels by a fixed share,"
                f" got {self.label_smoothing}; omit it"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {self.dropout}")
        parse_levels(self.levels)
        if self.weights.endswith(".safetensors"):  # absolute, so that the run can be resumed from any working directory
            object.__setattr__(self, "weights", str(Path(self.weights).resolve()))
