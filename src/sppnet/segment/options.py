"""Training options of segmenters."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from sppnet.backbones.weights import EMBEDDED_BACKBONE
from sppnet.errors import check_choice, require_positive
from sppnet.layers.atrous import auto_rates
from sppnet.layers.norms import Norm
from sppnet.segment.heads import Context, HeadName
from sppnet.segment.model import SegmenterConfig
from sppnet.training.options import LoopOptions

ClassWeights = Literal["none", "root", "median"]


@dataclass(frozen=True)
class SegmentOptions(LoopOptions):
    """Training options of a segmenter; the defaults suit street scenes of 480 x 360 pixels on a CPU.

    Attributes:
        backbone, weights: backbone and its weights, see :func:`sppnet.backbones.backbone.create_backbone`.
        head, context, output_stride, width, norm, separable, image_level, dropout: architecture of the segmenter, see
            :class:`sppnet.segment.model.SegmenterConfig`.
        rates: dilation rates of ASPP; empty: the papers' rates, reduced if they are too large for the feature map
            of a crop, see :func:`sppnet.layers.atrous.auto_rates`.
        crop: (height, width) of the training crops in pixels.
        scale: (minimum, maximum) factor by which images are resized before cropping.
        jitter: maximum relative change of brightness, contrast and saturation, in [0, 1).
        class_weights: class weights in the loss, see :func:`sppnet.segment.train.class_weights`.
        ignore: raw mask values to ignore; None: 255 and those of the layout.
        workers: number of processes that decode images.
    """

    backbone: str = EMBEDDED_BACKBONE
    weights: str = "auto"
    head: HeadName = "deeplabv3plus"
    context: Context = "aspp"
    output_stride: int = 16
    rates: tuple[int, ...] = ()
    width: int = 128
    norm: Norm = "safe"
    separable: bool | None = None
    image_level: bool = True
    dropout: float = 0.1
    crop: tuple[int, int] = (256, 320)
    scale: tuple[float, float] = (0.5, 2.0)
    jitter: float = 0.3
    class_weights: ClassWeights = "root"
    ignore: tuple[int, ...] | None = None
    epochs: int = 20
    batch: int = 8
    schedule: Literal["cosine", "step", "poly"] = "poly"
    lr: float | None = 1e-3
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (
            ("head", get_args(HeadName)),
            ("context", get_args(Context)),
            ("norm", get_args(Norm)),
            ("class_weights", get_args(ClassWeights)),
        ):
            check_choice(name, getattr(self, name), choices)
        require_positive(self, "width")
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: expected 8, 16 or 32, got {self.output_stride}")
        if self.context != "aspp" and self.head != "deeplabv3plus":
            raise ValueError(f"context: expected 'aspp' for {self.head}, got {self.context!r}; or use deeplabv3plus")
        if self.rates and (min(self.rates) < 1 or self.head == "pspnet" or self.context != "aspp"):
            raise ValueError(f"rates: expected dilation rates of at least 1 and a head with ASPP, got {self.rates}")
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"crop: expected a height and a width of at least 1 pixel, got {self.crop}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 10:
            raise ValueError(f"scale: expected 0 < minimum <= maximum <= 10, got {self.scale}")
        for name, value in (("jitter", self.jitter), ("dropout", self.dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
        unused = {"width": 128, "norm": "safe", "separable": None, "image_level": True, "dropout": 0.1}
        changed = [name for name, default in unused.items() if getattr(self, name) != default]
        if self.head == "deeplabv2" and changed:
            name = changed[0]
            raise ValueError(f"{name}: expected {unused[name]}, unused by deeplabv2, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers: expected at least 0, got {self.workers}")

    def config(
        self,
        classes: tuple[str, ...],
        ignore: tuple[int, ...] = (),
        table: tuple[tuple[Any, ...], ...] = (),
        colours: tuple[tuple[int, int, int], ...] = (),
    ) -> SegmenterConfig:
        """Return the configuration of the segmenter to train; its rates, if not given, fit the crop size.

        Args:
            classes: class names, in logit order.
            ignore: raw mask values to ignore, for the configuration.
            table: name, raw mask value and RGB color of each class, for the configuration.
            colours: RGB color of each class, for the configuration.
        """
        rates = self.rates
        if not rates and self.head != "pspnet" and self.context == "aspp":
            cells = tuple(-(-side // self.output_stride) for side in self.crop)
            rates = auto_rates(self.output_stride, cells, "v2" if self.head == "deeplabv2" else "v3")
        return SegmenterConfig(
            classes=classes,
            backbone=self.backbone,
            head=self.head,
            context=self.context,
            output_stride=self.output_stride,
            rates=rates,
            width=self.width,
            norm=self.norm,
            separable=self.separable,
            image_level=self.image_level,
            dropout=self.dropout,
            ignore=ignore,
            table=table,
            colours=colours,
        )
