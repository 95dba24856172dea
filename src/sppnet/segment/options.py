"""Options of segmenters: training, and the views of an image. This module does not import torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.errors import check_choice, require_positive
from sppnet.layers.names import Norm
from sppnet.training.options import LoopOptions

HeadName = Literal["deeplabv2", "deeplabv3", "deeplabv3plus", "pspnet"]
Context = Literal["aspp", "ppm", "none"]
ClassWeights = Literal["none", "root", "median"]


@dataclass(frozen=True)
class SegmentOptions(LoopOptions):
    """Training options of a segmenter; the defaults suit street scenes of 360 x 480 pixels on a CPU.

    Attributes:
        backbone, weights: backbone and its weights, see :func:`sppnet.backbones.backbone.create_backbone`.
        head, context, output_stride, width, norm, separable, image_level, dropout: architecture of the segmenter, see
            :class:`sppnet.segment.network.SegmenterConfig`.
        rates: dilation rates of ASPP; empty: the papers' rates, reduced if they are too large for the feature map
            of a crop, see :func:`sppnet.layers.atrous.auto_rates`.
        crop: (height, width) of the training crops in pixels.
        scale_range: (minimum, maximum) factor by which images are resized before cropping.
        jitter: maximum relative change of brightness, contrast and saturation, in [0, 1).
        class_weights: class weights in the loss, see :func:`sppnet.segment.train.class_weights`.
        ignore: raw mask values to ignore; None: 255 and those of the layout.
        workers: number of processes that decode images.
    """

    SCORES: ClassVar[tuple[str, ...]] = ("miou", "pixel_accuracy", "mean_accuracy")

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
    scale_range: tuple[float, float] = (0.5, 2.0)
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
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1] <= 10:
            raise ValueError(f"scale_range: expected 0 < minimum <= maximum <= 10, got {self.scale_range}")
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


@dataclass(frozen=True)
class View:
    """Scales, mirror images and tiles used to segment an image.

    Attributes:
        scale_factors: factors in 0.1..10 by which the image is resized; the probabilities are averaged. DeepLab v3
            (table 6) uses 0.5, 0.75, 1, 1.25, 1.5 and 1.75.
        flip: whether to add the mirror image at each scale.
        memory: limit for the process in bytes, including the interpreter, the model and the image; an image that would
            exceed it in one pass is split into tiles, as large as it allows. A pass on a GPU is counted as if it ran on
            the CPU. None for one pass.
        tile: maximum tile side in pixels, regardless of `memory`, a multiple of
            :func:`sppnet.segment.tiles.tile_stride`; None to compute it from `memory`.
        overlap: minimum overlap of tiles in pixels, see :func:`sppnet.inference.tiles.tile_spans`.
        global_context: whether tiles use the context of the whole image in ASPP's image-level branch.
    """

    scale_factors: tuple[float, ...] = (1.0,)
    flip: bool = False
    memory: int | None = None
    tile: int | None = None
    overlap: int = 64
    global_context: bool = False

    def __post_init__(self) -> None:
        if not self.scale_factors or not all(0.1 <= factor <= 10 for factor in self.scale_factors):
            raise ValueError(
                f"scale_factors: expected factors in 0.1..10, such as 0.75,1,1.25, got {self.scale_factors}"
            )
        for name, value, minimum in (("tile", self.tile, 1), ("overlap", self.overlap, 0), ("memory", self.memory, 1)):
            if value is not None and value < minimum:
                raise ValueError(f"{name}: expected at least {minimum}, got {value}")
        if self.tile is not None and self.several:
            raise ValueError(
                f"tile: expected None if scale_factors or flip is set, got {self.tile}; omit them to use tiles"
            )

    @property
    def several(self) -> bool:
        """Whether probabilities are averaged over scales or mirror images."""
        return self.scale_factors != (1.0,) or self.flip
