"""Training options."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args, get_type_hints

from sppnet.errors import check_choice, require_positive

_RATES = {"adamw": 3e-4, "sgd": 1e-2}
_DECAYS = {"adamw": 5e-2, "sgd": 5e-4}


@dataclass(frozen=True)
class LoopOptions:
    """Options of the training loop.

    Attributes:
        epochs, batch: number of epochs, and images per batch.
        accumulate: number of batches whose gradients make one step of the optimizer.
        optimizer, lr, weight_decay: ``adamw`` or ``sgd``; `lr` and `weight_decay` default to common values for it.
            Biases and the parameters of norms do not decay.
        schedule: ``cosine``; ``step``, which divides the rate by 10 after 60 % and 85 % of the steps; or ``poly``,
            which multiplies it by (1 - fraction of steps done) ** 0.9.
        warmup_epochs: epochs, or a fraction of one, in which the rate rises linearly, before the schedule begins.
        label_smoothing: share of each target that is divided among all classes, in [0, 1).
        ema: decay of a moving average of the weights, such as 0.9998, which is smaller in the first steps. Validation
            and the saved model use the average. None for no average.
        monitor: validation score by which the best epoch is kept; None for the main score of the task.
        patience: number of epochs without a better score after which training stops; None for all epochs.
        train_stages: last stages of the backbone to train: ``0``, a number, or ``all``. The others are frozen: they
            run in evaluation mode, without gradients.
        freeze_backbone: another name of ``train_stages="0"``.
        init: run folder whose weights the training starts from, see :func:`sppnet.training.init.initialize`.
        precision: ``32-true`` or ``bf16-mixed``.
        seed: seed of all random numbers.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices, nodes: number of processes per machine, and of machines. `batch` is the total over all processes, so
            training does not depend on their number.
        tensorboard: whether to write TensorBoard events to the run folder too.
        deterministic: whether to reject nondeterministic operators; equal seeds then give bit-identical results on the
            same machine, also on a GPU.
    """

    SCORES: ClassVar[tuple[str, ...]] = ()
    """Names of the validation scores, the main one first; higher is better."""

    epochs: int = 20
    batch: int = 32
    accumulate: int = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    schedule: Literal["cosine", "step", "poly"] = "cosine"
    warmup_epochs: float = 0
    label_smoothing: float = 0
    ema: float | None = None
    monitor: str | None = None
    patience: int | None = None
    train_stages: str = "all"
    freeze_backbone: bool = False
    init: str | None = None
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    nodes: int = 1
    tensorboard: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        hints = get_type_hints(LoopOptions)
        for name in ("optimizer", "schedule", "precision", "device"):
            check_choice(name, getattr(self, name), get_args(hints[name]))
        require_positive(self, "epochs", "batch", "accumulate", "devices", "nodes")
        if self.devices * self.nodes > self.batch:
            processes = self.devices * self.nodes
            raise ValueError(f"devices: expected at most one per image of a batch ({self.batch}), got {processes}")
        for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {value}")
        for name, value in (("label_smoothing", self.label_smoothing), ("ema", self.ema)):
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs: expected less than all {self.epochs} epochs, and at least 0, got {self.warmup_epochs}"
            )
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed: expected 0..{(1 << 32) - 1}, got {self.seed}")
        if self.monitor is not None and self.SCORES:
            check_choice("monitor", self.monitor, self.SCORES)
        if self.patience is not None:
            require_positive(self, "patience")
        self._set_stages()
        if self.init is not None:  # absolute, so that the run can be resumed from any working directory
            object.__setattr__(self, "init", str(Path(self.init).resolve()))

    def _set_stages(self) -> None:
        stages = str(self.train_stages)
        if stages not in ("all", type(self).train_stages) and not stages.isdecimal():
            raise ValueError(f"train_stages: expected 0, a number of stages, or all, got {stages!r}")
        if self.freeze_backbone:
            if stages not in ("0", type(self).train_stages):
                raise ValueError(f"train_stages: expected 0 with freeze_backbone, got {stages}; omit one of them")
            stages = "0"
        object.__setattr__(self, "train_stages", str(int(stages)) if stages.isdecimal() else stages)

    def require_validation(self, images: int) -> None:
        """Check that there are validation images if an option needs them.

        Raises:
            ValueError: `monitor` or `patience` is set, and there are none.
        """
        for name in ("monitor", "patience"):
            if not images and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}: expected validation images to score each epoch, got none; set val (--val) or omit {name}"
                )

    @property
    def frozen(self) -> bool:
        """Whether no stage of the backbone is trained."""
        return self.train_stages == "0"

    @property
    def rate(self) -> float:
        """Learning rate, with None replaced by the optimizer's default."""
        return _RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """Weight decay, with None replaced by the optimizer's default."""
        return _DECAYS[self.optimizer] if self.weight_decay is None else self.weight_decay
