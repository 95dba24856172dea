"""Training options of a classifier."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.data.resize import Resize
from sppnet.data.schedule import Schedule
from sppnet.errors import check_choice, require_positive
from sppnet.ops.levels import Level, Reduce, Rule, parse_levels
from sppnet.training.options import LoopOptions

Head = Literal["linear", "fc", "ridge", "svm"]
WITHOUT_EPOCHS = ("ridge", "svm")  # heads that are fitted to all vectors at once
ClassWeights = Literal["none", "balanced"]


@dataclass(frozen=True)
class ClassifyOptions(LoopOptions):
    """Training options of a classifier; the defaults fit a ridge regression to vectors of the embedded network.

    Attributes:
        backbone, stage, weights: see :func:`sppnet.backbones.backbone.create_backbone`.
        levels, reduce, rule: see :func:`sppnet.pyramid_pool`.
        stages: indices of further feature maps whose pyramid vectors are used too, see `ClassifierConfig.stages`; None
            for :func:`sppnet.classify.network.default_stages` with a frozen backbone, and no further maps otherwise.
        head: ``linear``, ``fc`` (the paper's fc6-fc7-fc8), ``svm`` (the paper's SVMs) or ``ridge`` (ridge regression);
            None for ``ridge`` with a frozen backbone and ``linear`` otherwise.
        train_stages: last stages of the backbone to train: ``0``, a number, or ``all``. With 0, the pyramid vectors are
            computed once, at the sizes given by `resize`, and only the head is trained.
        class_weights: weights of the classes in the loss: ``none``, or ``balanced``, inversely proportional to their
            numbers of images.
        sizes: training image sizes: ``224``, ``180,224`` (alternating by epoch), ``180-224`` (drawn for each epoch) or
            ``native``; not used with a frozen backbone.
        resize: size policy of evaluation and prediction, see :class:`sppnet.Resize`; None for ``native`` if training
            is native or the backbone frozen, otherwise for a shorter side of 8/7 of the largest training size.
        max_pixels: maximum pixels of an image at native size.
        batch_pixels: at native sizes, maximum number of pixels in one process's part of a batch, with padding, so that
            batches have fewer large images; None for no limit.
        svm_c: penalty of the SVM.
        workers: number of processes that decode images.
        cache: folder for vectors and sizes of images, which runs may share; None for ``cache`` in the run folder.
        cache_limit: largest size of the cache of vectors in GB; also limited by the free disk space.
    """

    SCORES: ClassVar[tuple[str, ...]] = ("top1", "mean_per_class_accuracy")

    backbone: str = EMBEDDED_BACKBONE
    stage: int | None = None
    stages: tuple[int, ...] | None = None
    weights: str = "auto"
    levels: tuple[Level, ...] = (3, 2, 1)
    reduce: Reduce = "max"
    rule: Rule = "adaptive"
    head: Head | None = None
    train_stages: str = "0"
    class_weights: ClassWeights = "none"
    sizes: str = "224"
    resize: str | None = None
    max_pixels: int = 1_000_000
    batch_pixels: int | None = None
    svm_c: float = 1.0
    workers: int = 0
    cache: str | None = None
    cache_limit: float = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("reduce", self.reduce, get_args(Reduce))
        check_choice("rule", self.rule, get_args(Rule))
        check_choice("head", self.kind, get_args(Head))
        check_choice("class_weights", self.class_weights, get_args(ClassWeights))
        require_positive(self, "max_pixels")
        if self.batch_pixels is not None and (Schedule.parse(self.sizes).sides or self.batch_pixels < self.max_pixels):
            raise ValueError(
                f"batch_pixels: expected at least max_pixels ({self.max_pixels}) and native sizes, got"
                f" {self.batch_pixels} with sizes {self.sizes}"
            )
        if self.frozen and self.devices * self.nodes > 1:
            raise ValueError(
                f"devices: expected 1 with a frozen backbone, got {self.devices * self.nodes}; several processes train"
                " stages of the backbone (--train-stages all)"
            )
        if not 0 < self.svm_c < math.inf:
            raise ValueError(f"svm_c: expected a penalty above 0, got {self.svm_c}")
        if self.kind != "svm" and self.svm_c != type(self).svm_c:
            raise ValueError(f"svm_c: expected no value with the head {self.kind}, got {self.svm_c}; set --head svm")
        if not self.cache_limit > 0:
            raise ValueError(f"cache_limit: expected a number of gigabytes above 0, got {self.cache_limit}")
        if self.workers < 0:
            raise ValueError(f"workers: expected at least 0, got {self.workers}")
        if self.head in WITHOUT_EPOCHS and not self.frozen:
            raise ValueError(
                f"head: expected linear or fc, got {self.head}, which needs a frozen backbone (--train-stages 0)"
            )
        self._check_loop()
        Schedule.parse(self.sizes)
        Resize.parse(self.evaluation_size)
        parse_levels(self.levels)

    def _check_loop(self) -> None:
        """Check that the options of the training loop are not set for a head that has none."""
        unused = ("accumulate", "warmup_epochs", "label_smoothing", "ema", "monitor", "patience")
        if changed := [
            name for name in unused if self.kind in WITHOUT_EPOCHS and getattr(self, name) != getattr(LoopOptions, name)
        ]:
            raise ValueError(
                f"{changed[0]}: expected no value, because the head {self.kind} is not trained in epochs, got"
                f" {getattr(self, changed[0])}; choose another one, or train stages (--train-stages)"
            )

    @property
    def kind(self) -> Head:
        """Head, with None replaced by the default."""
        default: Head = "ridge" if self.frozen else "linear"
        return default if self.head is None else self.head

    @property
    def evaluation_size(self) -> str:
        """Size policy of evaluation, with None replaced by the default."""
        if self.resize is not None:
            return self.resize
        sides = Schedule.parse(self.sizes).sides
        return "native" if self.frozen or not sides else f"shorter-side:{round(max(sides) * 8 / 7)}"
