"""Settings of a training."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from sppnet.backbones.weights import EMBEDDED_BACKBONE
from sppnet.data.batching import Schedule
from sppnet.data.resize import Resize
from sppnet.errors import choose, require_positive
from sppnet.ops.bins import Level, Rule, parse_levels
from sppnet.ops.reference import Reduce

_RATES = {"adamw": 3e-4, "sgd": 1e-2}
_DECAYS = {"adamw": 5e-2, "sgd": 5e-4}


@dataclass(frozen=True)
class LoopOptions:
    """What the training loop is told.

    Attributes:
        epochs, batch, optimizer, lr, weight_decay, schedule: lr and weight_decay of None are the optimiser's customary
            ones. ``step`` divides the rate by 10 after 60 % and 85 % of the steps; ``poly`` multiplies it by
            (1 - share of the steps done) ** 0.9.
        precision: ``32-true`` or ``bf16-mixed``.
        seed: of everything that is drawn.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        tensorboard: write TensorBoard events into the run folder too.
        deterministic: refuse operators whose result varies from run to run; equal seeds then give equal bits on the
            same machine, on a GPU too.
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
        for name, choices in (
            ("optimizer", ("adamw", "sgd")),
            ("schedule", ("cosine", "step", "poly")),
            ("precision", ("32-true", "bf16-mixed")),
            ("device", ("auto", "cpu", "cuda", "mps")),
        ):
            choose(name, getattr(self, name), choices)
        require_positive(self, "epochs", "batch")
        for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0; got {value}")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed: expected 0..{(1 << 32) - 1}; got {self.seed}")

    @property
    def rate(self) -> float:
        """The learning rate that `lr` of None stands for."""
        return _RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """The weight decay that `weight_decay` of None stands for."""
        return _DECAYS[self.optimizer] if self.weight_decay is None else self.weight_decay


@dataclass(frozen=True)
class TrainOptions(LoopOptions):
    """Settings of a classifier's training; the defaults train the whole embedded network at one size.

    Attributes:
        backbone, stage, weights: see :func:`sppnet.backbones.backbone.create_backbone`.
        levels, reduce, rule: see :func:`sppnet.pyramid_pool`.
        head: ``linear``, ``fc`` (the paper's fc6-fc7-fc8) or ``svm``; None for ``svm`` on a frozen backbone and
            ``linear`` otherwise.
        freeze_backbone: compute the pyramid vectors once, at the sizes that `resize` gives, and train the head.
        sizes: of the training images: ``224``, ``180,224`` (an epoch each in turn), ``180-224`` (drawn for each
            epoch) or ``native``; a frozen backbone does not use it.
        resize: at which size images are evaluated and predicted, see :class:`sppnet.Resize`; None for ``native``
            where training is, and for a shorter side of 8/7 of the greatest training size otherwise.
        max_pixels: bound of native sizes.
        batch_pixels: at native sizes, most pixels of a process' part of a batch with its padding; large images then
            come in batches of fewer. None for no bound.
        svm_c: penalty of the SVM.
        workers: processes that decode images.
        cache: where vectors and sizes of images are kept, None for the run folder; runs may share it.
        devices, nodes: processes on each machine, and machines. `batch` counts the images of all of them together, so
            that the training is the same on any number.
    """

    backbone: str = EMBEDDED_BACKBONE
    stage: int | None = None
    weights: str = "auto"
    levels: tuple[Level, ...] = (3, 2, 1)
    reduce: Reduce = "max"
    rule: Rule = "adaptive"
    head: Literal["linear", "fc", "svm"] | None = None
    freeze_backbone: bool = False
    sizes: str = "224"
    resize: str | None = None
    max_pixels: int = 1_000_000
    batch_pixels: int | None = None
    svm_c: float = 1.0
    workers: int = 0
    cache: str | None = None
    devices: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (
            ("reduce", get_args(Reduce)),
            ("rule", get_args(Rule)),
            ("head", (None, "linear", "fc", "svm")),
        ):
            if getattr(self, name) not in choices:
                choose(name, getattr(self, name), [choice for choice in choices if choice])
        require_positive(self, "max_pixels", "devices", "nodes")
        if self.batch_pixels is not None and (Schedule.parse(self.sizes).sides or self.batch_pixels < self.max_pixels):
            raise ValueError(
                f"batch_pixels: expected at least max_pixels, {self.max_pixels}, and native sizes; got"
                f" {self.batch_pixels} with sizes {self.sizes}"
            )
        if self.devices * self.nodes > self.batch:
            raise ValueError(
                f"devices: expected at most one for each of the {self.batch} images of a batch; got"
                f" {self.devices * self.nodes}"
            )
        if self.freeze_backbone and self.devices * self.nodes > 1:
            raise ValueError(f"devices: a frozen backbone is trained by 1; got {self.devices * self.nodes}")
        if not 0 < self.svm_c < math.inf:
            raise ValueError(f"svm_c: expected a penalty above 0; got {self.svm_c}")
        if self.workers < 0:
            raise ValueError(f"workers: expected at least 0; got {self.workers}")
        if self.head == "svm" and not self.freeze_backbone:
            raise ValueError("head: an SVM is trained on vectors; it needs freeze_backbone (--freeze-backbone)")

        Schedule.parse(self.sizes)
        Resize.parse(self.evaluation_size)
        parse_levels(self.levels)

    @property
    def kind(self) -> Literal["linear", "fc", "svm"]:
        """The head that None stands for."""
        return self.head or ("svm" if self.freeze_backbone else "linear")

    @property
    def evaluation_size(self) -> str:
        """The size policy that `resize` of None stands for."""
        sides = Schedule.parse(self.sizes).sides
        if self.resize is not None:
            return self.resize
        return "native" if self.freeze_backbone or not sides else f"shorter-side:{round(max(sides) * 8 / 7)}"
