"""Window-based detectors: SPP-net, R-CNN and Fast R-CNN, which differ in how window vectors are computed."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, overload

import torch
from jaxtyping import Float, Real
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from sppnet.backbones.backbone import Backbone, create_backbone
from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.data.images import ImageSource, list_sources, load_image, source_name
from sppnet.detect.classic.rcnn import CropEncoder
from sppnet.detect.options import DEFAULT_MIN_SCORES, Method, Regression, Scorer
from sppnet.detect.predict import DetectionResult
from sppnet.detect.proposals import Proposals, iter_proposals
from sppnet.detect.suppression import suppress
from sppnet.detect.two_stage.model import TwoStageDetector, create_two_stage
from sppnet.detect.two_stage.network import TwoStageConfig
from sppnet.errors import ImageError, check_choice, check_classes
from sppnet.features.encoder import DistinctVectors, RegionEncoder
from sppnet.features.options import ScaleRule
from sppnet.inference.parallel import map_images
from sppnet.inference.results import Detections, Failure, filter_by_score
from sppnet.ops.boxes import areas, decode
from sppnet.ops.levels import CellRule, Level, Reduce
from sppnet.progress import track

_MAX_PER_CLASS = 100  # detections of one class in one image
# Detections must score above this: margins as in the SPP-net authors' code, probabilities as in Fast R-CNN's.
_THRESHOLDS = {"svm": -1.5, "softmax": 0.01}


@dataclass(frozen=True)
class DetectorConfig:
    """Configuration of a detector: everything except the weights.

    Attributes:
        classes: class names, in label order.
        method: ``spp``, ``rcnn`` or ``fast``.
        backbone, stage: arguments of :func:`sppnet.backbones.backbone.create_backbone`.
        levels, scales, max_side, rule, reduce, scale_rule: arguments of :class:`sppnet.RegionEncoder`; R-CNN uses only
            levels and reduce.
        hidden: output sizes of fc6 and fc7; empty to score the pooled vectors.
        scorer: ``svm`` (one margin per class) or ``softmax`` (probabilities, with an additional background class).
        regression: input of the box regression: ``none``, ``pool`` (pooled vectors) or ``fc`` (same as the scores).
        proposals: proposal source, see :func:`sppnet.detect.proposals.propose`.
        windows: maximum number of windows per image.
        proposal_seconds: time after which the search of an image starts no further part; None for no limit.
        overlap: NMS threshold; a detection is dropped if its IoU with a better one is above it.
        calibration: a and b of the probability ``sigmoid(a * margin + b)`` that is reported as the score, where the
            margin is that of an SVM or the log-odds of a softmax; None to report margins, or the softmax.
        threshold: lowest score to report by default; None for -0.5 (SVM) or 0.5 (softmax).
    """

    task: ClassVar[str] = "detect"

    classes: tuple[str, ...]
    method: Method = "spp"
    backbone: str = EMBEDDED_BACKBONE
    stage: int | None = None
    levels: tuple[Level, ...] = (6, 3, 2, 1)
    scales: tuple[int, ...] = (688,)
    max_side: int = 2000
    rule: CellRule = "paper"
    reduce: Reduce = "max"
    scale_rule: ScaleRule = "paper"
    hidden: tuple[int, ...] = ()
    scorer: Scorer = "svm"
    regression: Regression = "none"
    proposals: str = "selective-search"
    windows: int = 2000
    proposal_seconds: float | None = None
    overlap: float = 0.3
    calibration: tuple[float, float] | None = None
    threshold: float | None = None

    @property
    def probabilities(self) -> bool:
        """Whether scores are probabilities."""
        return self.scorer == "softmax" or self.calibration is not None

    @property
    def min_score(self) -> float:
        """Lowest score to report by default."""
        return DEFAULT_MIN_SCORES[self.scorer] if self.threshold is None else self.threshold


class Detector(nn.Module):
    """Detector that predicts scores and box offsets of every class for the windows of an image.

    `encoder` computes the window vectors, `norm` scales them, `fc` holds the hidden layers (empty without any), and
    `score` and `offsets` are linear layers.
    """

    norm: Tensor

    def __init__(self, config: DetectorConfig, backbone: Backbone) -> None:
        super().__init__()
        check_choice("method", config.method, get_args(Method))
        check_choice("scorer", config.scorer, get_args(Scorer))
        check_choice("regression", config.regression, get_args(Regression))
        check_classes(config.classes)
        self.config = config
        self.encoder = create_encoder(config, backbone)
        self.register_buffer("norm", torch.ones(()))
        self.fc = create_fc(self.encoder.length, config.hidden)
        width = config.hidden[-1] if config.hidden else self.encoder.length
        classes = len(config.classes)
        self.score = nn.Linear(width, classes + (config.scorer == "softmax"))
        from_pool = config.regression == "pool"
        self.offsets: nn.Module | None = None
        if config.regression != "none":
            self.offsets = nn.Linear(self.encoder.length if from_pool else width, 4 * classes)
        self.eval()

    def forward(self, vectors: Float[Tensor, "k d"]) -> tuple[Float[Tensor, "k s"], Float[Tensor, "k c 4"] | None]:
        """Compute raw scores and box offsets of windows.

        Args:
            vectors: window vectors from the encoder.

        Returns:
            (K, classes) margins, or (K, classes + 1) logits with the background last; and (K, classes, 4) offsets for
            :func:`sppnet.ops.boxes.decode`, None without box regression.
        """
        pooled = (vectors * self.norm).to(self.score.weight.dtype)
        features = self.fc(pooled)
        scores: Tensor = self.score(features)
        if self.offsets is None:
            return scores, None
        offsets: Tensor = self.offsets(pooled if self.config.regression == "pool" else features)
        return scores, offsets.unflatten(1, (-1, 4))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.score.weight.device

    def detect(self, image: Image.Image, proposals: Real[Tensor, "k 4"]) -> Detections:
        """Detect objects among the given windows of an RGB image.

        Args:
            image: image from :func:`sppnet.data.images.load_image`.
            proposals: xyxy edges in pixels of the image; may be empty.
        """
        boxes = proposals.float()
        with evaluation_mode(self), torch.inference_mode():
            distinct = self.encoder.distinct(self.encoder.prepare(image), boxes)  # type: ignore[arg-type]
            return self.read(distinct, boxes, (image.height, image.width))

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        min_score: float | None = None,
        proposals: str | None = None,
        cache: str | Path | None = None,
        workers: int = 1,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> list[DetectionResult | Failure]:
        """Detect objects in images.

        Args:
            images: one image or several, see :func:`sppnet.data.images.load_image`.
            min_score: lowest score to report; None for `min_score` of the configuration.
            proposals: proposal source, see :func:`sppnet.detect.proposals.iter_proposals`; None for that of the
                configuration. To detect objects among given boxes, call :meth:`detect`.
            cache: folder that caches proposals; None to search again.
            workers: images searched for proposals in parallel.
            on_error: ``raise``, or ``skip`` to return a Failure in place of an image that cannot be used.

        Raises:
            sppnet.ImageError: an image cannot be used, and `on_error` is ``raise``.
            ValueError: invalid argument, or the proposals come from a file and an image is not a path.
        """
        options: dict[str, Any] = {"proposals": proposals, "cache": cache, "workers": workers, "on_error": on_error}
        return list(self.iter_predictions(list_sources(images), min_score=min_score, **options))

    def iter_predictions(
        self,
        images: Sequence[ImageSource],
        *,
        min_score: float | None = None,
        proposals: str | None = None,
        cache: str | Path | None = None,
        workers: int = 1,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Iterator[DetectionResult | Failure]:
        """Yield the result of each image; arguments as for :meth:`predict`."""
        found = self.propose(images, proposals, cache=cache, workers=workers)
        return self.detect_among(images, found, min_score=min_score, on_error=on_error)

    def propose(
        self,
        images: Sequence[ImageSource],
        source: str | None = None,
        *,
        cache: str | Path | None = None,
        workers: int = 1,
    ) -> Iterator[Proposals | Failure]:
        """Yield the proposals of each image, with the limits of the configuration; arguments as for :meth:`predict`."""
        config = self.config
        limits = {"max_windows": config.windows, "seconds": config.proposal_seconds}
        return iter_proposals(images, source or config.proposals, cache, workers=workers, **limits)  # type: ignore[arg-type]

    def detect_among(
        self,
        images: Sequence[ImageSource],
        proposals: Iterable[Proposals | Failure],
        *,
        min_score: float | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Iterator[DetectionResult | Failure]:
        """Yield the result of each image, given the proposals from :meth:`propose`; see :meth:`predict`."""
        check_choice("on_error", on_error, ("raise", "skip"))
        threshold = self.config.min_score if min_score is None else min_score

        def load(
            item: tuple[int, tuple[ImageSource, Proposals | Failure]],
        ) -> tuple[str, Image.Image, Tensor] | Failure:
            index, (source, windows) = item
            name = source_name(source, index)
            try:
                if isinstance(windows, Failure):
                    raise windows.error
                return name, load_image(source), windows.boxes
            except ImageError as error:
                return Failure(name, ImageError(name, error.reason))

        def run(loaded: tuple[str, Image.Image, Tensor] | Failure) -> DetectionResult | Failure:
            if isinstance(loaded, Failure):
                return loaded
            name, image, boxes = loaded
            detections = filter_by_score(self.detect(image, boxes), threshold)
            return DetectionResult(name, (image.height, image.width), detections, self.config.classes, boxes)

        items = enumerate(zip(images, proposals, strict=True))
        with evaluation_mode(self), closing(map_images(load, run, items, self.device)) as results:
            for result in track(results, "detecting", len(images)):
                if isinstance(result, Failure) and on_error == "raise":
                    raise result.error
                yield result

    def read(self, distinct: DistinctVectors, proposals: Float[Tensor, "k 4"], size: tuple[int, int]) -> Detections:
        """Convert window vectors into detections: threshold, NMS, box regression, second NMS.

        Args:
            distinct: vectors of the proposals.
            proposals: xyxy edges in pixels of the image.
            size: (height, width) of the image.
        """
        scores, offsets = self(distinct.data.to(self.device))
        if self.config.scorer == "softmax":
            scores = scores.float().softmax(1)[:, :-1]
        scores = scores.float().cpu()[distinct.index.cpu()]
        offsets = offsets.float().cpu()[distinct.index.cpu()] if offsets is not None else None
        boxes_by_class, scores_by_class, labels = [], [], []
        for label in range(len(self.config.classes)):
            rows = (scores[:, label] > _THRESHOLDS[self.config.scorer]).nonzero()[:, 0]
            # As in the authors' code, NMS runs before box regression and again after it.
            rows = rows[suppress(proposals[rows], scores[rows, label], self.config.overlap)][:_MAX_PER_CLASS]
            boxes = clip_boxes_to_image(proposals[rows], size)
            if offsets is not None:
                boxes = clip_boxes_to_image(decode(proposals[rows], offsets[rows, label]), size)
                kept = suppress(boxes, scores[rows, label], self.config.overlap)
                boxes, rows = boxes[kept], rows[kept]
            valid = areas(boxes) > 0
            boxes_by_class.append(boxes[valid])
            scores_by_class.append(scores[rows[valid], label])
            labels.append(torch.full((int(valid.sum()),), label))
        joined = torch.cat(scores_by_class)
        order = joined.argsort(descending=True, stable=True)
        return Detections(torch.cat(boxes_by_class)[order], self.calibrated(joined[order]), torch.cat(labels)[order])

    def margins(self, scores: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Return the unbounded scores that `calibration` applies to: the margins, or the log-odds of a softmax."""
        return scores.double() if self.config.scorer == "svm" else scores.double().logit(1e-9)

    def calibrated(self, scores: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Return the scores to report: by `calibration`, or unchanged without one."""
        if self.config.calibration is None:
            return scores
        slope, offset = self.config.calibration
        return (slope * self.margins(scores) + offset).sigmoid().float()


AnyDetector = Detector | TwoStageDetector


@overload
def create_detector(config: DetectorConfig, weights: str | None = "auto") -> Detector: ...


@overload
def create_detector(config: TwoStageConfig, weights: str | None = "auto") -> TwoStageDetector: ...


def create_detector(config: DetectorConfig | TwoStageConfig, weights: str | None = "auto") -> AnyDetector:
    """Create a detector with a random head.

    Args:
        config: configuration.
        weights: weights of the backbone, see :func:`sppnet.create_backbone`.

    Raises:
        ValueError: invalid configuration, or unusable weights.
    """
    if isinstance(config, TwoStageConfig):
        return create_two_stage(config, weights)
    backbone = create_backbone(config.backbone, config.stage, weights)
    return Detector(replace(config, stage=backbone.stage), backbone)


def create_encoder(config: DetectorConfig, backbone: Backbone) -> RegionEncoder | CropEncoder:
    """Create the window encoder: one forward pass per image, or one per window for R-CNN."""
    if config.method == "rcnn":
        return CropEncoder(backbone, config.levels, reduce=config.reduce)
    return RegionEncoder(
        backbone, config.levels, config.scales, config.max_side, config.rule, config.reduce, config.scale_rule
    )


def create_fc(in_features: int, hidden: Sequence[int]) -> nn.Sequential:
    """Create fc6, fc7, ... with ReLU and dropout; an empty module if `hidden` is empty."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(hidden, 6):
        linear = nn.Linear(in_features, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers |= {f"fc{number}": linear, f"relu{number}": nn.ReLU(), f"drop{number}": nn.Dropout(0.5)}
        in_features = width
    return nn.Sequential(layers)
