"""Training options."""

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from sppnet.errors import check_choice, require_positive

_RATES = {"adamw": 3e-4, "sgd": 1e-2}
_DECAYS = {"adamw": 5e-2, "sgd": 5e-4}


@dataclass(frozen=True)
class LoopOptions:
    """Options of the training loop.

    Attributes:
        epochs, batch: number of epochs, and images per batch.
        optimizer, lr, weight_decay: ``adamw`` or ``sgd``; `lr` and `weight_decay` default to common values for it.
        schedule: ``cosine``; ``step``, which divides the rate by 10 after 60 % and 85 % of the steps; or ``poly``,
            which multiplies it by (1 - fraction of steps done) ** 0.9.
        precision: ``32-true`` or ``bf16-mixed``.
        seed: seed of all random numbers.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        tensorboard: whether to write TensorBoard events to the run folder too.
        deterministic: whether to reject nondeterministic operators; equal seeds then give bit-identical results on the
            same machine, also on a GPU.
    """

    epochs: int = 20
    batch: int = 32
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    schedule: Literal["cosine", "step", "poly"] = "cosine"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    tensorboard: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        hints = get_type_hints(LoopOptions)
        for name in ("optimizer", "schedule", "precision", "device"):
            check_choice(name, getattr(self, name), get_args(hints[name]))
        require_positive(self, "epochs", "batch")
        for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {value}")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed: expected 0..{(1 << 32) - 1}, got {self.seed}")

    @property
    def rate(self) -> float:
        """Learning rate, with None replaced by the optimizer's default."""
        return _RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """Weight decay, with None replaced by the optimizer's default."""
        return _DECAYS[self.optimizer] if self.weight_decay is None else self.weight_decay
