"""Detectors over windows: SPP-net's, R-CNN's and Fast R-CNN's differ in where a window's vector comes from."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from sppnet.backbones.backbone import Backbone
from sppnet.backbones.weights import EMBEDDED_BACKBONE
from sppnet.data.images import ImageSource, load_image
from sppnet.detect.classic.rcnn import CropEncoder
from sppnet.detect.proposals import propose
from sppnet.errors import choose
from sppnet.features.encoder import DistinctVectors, RegionEncoder, ScaleRule
from sppnet.inference.results import Detections
from sppnet.ops.bins import CellRule, Level
from sppnet.ops.boxes import areas, clip, decode, suppress
from sppnet.ops.reference import Reduce

Method = Literal["spp", "rcnn", "fast"]
Scorer = Literal["svm", "softmax"]
Regression = Literal["none", "pool", "fc"]

_PER_CLASS = 100  # detections of one class in one image, at most
# Below these no detection is reported: the code's -1.5 for margins, and for probabilities Fast R-CNN's.
_LEAST = {"svm": -1.5, "softmax": 0.01}


@dataclass(frozen=True)
class DetectorConfig:
    """All that rebuilds a detector, its weights apart.

    Attributes:
        classes: names, in the order of the labels.
        method: ``spp``, ``rcnn`` or ``fast``.
        backbone, stage: see :func:`sppnet.backbones.backbone.create_backbone`.
        levels, scales, max_side, rule, reduce, scale_rule: see :class:`sppnet.RegionEncoder`; R-CNN has levels and
            reduce only.
        hidden: outputs of fc6 and fc7; empty where scores come from the pooled vectors.
        scorer: ``svm``: a margin a class; ``softmax``: probabilities, with one more class for the background.
        regression: ``none``, ``pool`` from the pooled vectors, or ``fc`` from what the scores come from.
        proposals: where windows come from, see :func:`sppnet.detect.proposals.propose`.
        windows: most windows of an image.
        proposal_seconds: an image's search for windows begins nothing new after so many; None for no limit.
        overlap: a detection goes where it overlaps a better one by more.
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


class Detector(nn.Module):
    """Windows of an image in, scores and offsets of every class out.

    `encoder` gives each window a vector, `norm` scales it, `fc` is fc6 and fc7 or nothing, `score` and `offsets` are
    linear.
    """

    norm: Tensor

    def __init__(self, config: DetectorConfig, backbone: Backbone) -> None:
        super().__init__()
        choose("method", config.method, get_args(Method))
        choose("scorer", config.scorer, get_args(Scorer))
        choose("regression", config.regression, get_args(Regression))
        if not config.classes or len(set(config.classes)) < len(config.classes):
            raise ValueError(f"classes: expected one or more different names; got {config.classes}")
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
        """Raw scores and offsets of windows.

        Args:
            vectors: as the encoder gives them.

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
        """Where the weights are."""
        return self.score.weight.device

    def detect(self, image: Image.Image, proposals: Float[Tensor, "k 4"]) -> Detections:
        """Objects of an RGB image among its windows, in pixels of the image.

        Args:
            image: as :func:`sppnet.data.images.load_image` gives it.
            proposals: xyxy edges in pixels of the image; without any there are no detections.
        """
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                distinct = self.encoder.distinct(self.encoder.prepare(image), proposals)  # type: ignore[arg-type]
                return self.read(distinct, proposals, (image.height, image.width))
        finally:
            self.train(training)

    def predict(self, images: ImageSource | Iterable[ImageSource]) -> list[Detections]:
        """Find objects in images or files, each with proposals of its own.

        Args:
            images: one or several: paths, bytes of files, Pillow images, uint8 arrays.

        Raises:
            sppnet.ImageError: the first image that cannot be read.
            ValueError: the detector's proposals come from a file; give them to :meth:`detect`.
        """
        single = isinstance(images, str | bytes | os.PathLike | Image.Image | np.ndarray)
        loaded = (load_image(source) for source in ([images] if single else images))  # type: ignore[union-attr,arg-type]
        config = self.config
        limits = {"max_windows": config.windows, "seconds": config.proposal_seconds}
        return [self.detect(one, propose(one, config.proposals, **limits)) for one in loaded]  # type: ignore[arg-type]

    def read(self, distinct: DistinctVectors, proposals: Float[Tensor, "k 4"], size: tuple[int, int]) -> Detections:
        """Detections from the windows' vectors: threshold, suppression, regression, suppression.

        Args:
            distinct: vectors of the proposals.
            proposals: xyxy edges in pixels of the image.
            size: (height, width) of the image.
        """
        scores, offsets = self(distinct.data.to(self.device))
        if self.config.scorer == "softmax":
            scores = scores.float().softmax(1)[:, :-1]
        scores = scores.float().cpu()[distinct.index.cpu()]
        moved = offsets.float().cpu()[distinct.index.cpu()] if offsets is not None else None
        boxes, found, labels = [], [], []
        for label in range(len(self.config.classes)):
            rows = (scores[:, label] > _LEAST[self.config.scorer]).nonzero()[:, 0]
            # As in the authors' code, regression moves what is left of a first suppression, and what then overlaps
            # is suppressed again.
            rows = rows[suppress(proposals[rows], scores[rows, label], self.config.overlap)][:_PER_CLASS]
            mine = clip(proposals[rows], size)
            if moved is not None:
                mine = clip(decode(proposals[rows], moved[rows, label]), size)
                kept = suppress(mine, scores[rows, label], self.config.overlap)
                mine, rows = mine[kept], rows[kept]
            good = areas(mine) > 0
            boxes.append(mine[good])
            found.append(scores[rows[good], label])
            labels.append(torch.full((int(good.sum()),), label))
        joined = torch.cat(found)
        order = joined.argsort(descending=True, stable=True)
        return Detections(torch.cat(boxes)[order], joined[order], torch.cat(labels)[order])


def list_objects(found: Detections, classes: Sequence[str]) -> list[dict[str, Any]]:
    """For JSON: `label`, `score` and `box` (xyxy edges in pixels of the image) of each detection, in order."""
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [{"label": classes[label], "score": score, "box": box} for box, score, label in rows]


def create_encoder(config: DetectorConfig, backbone: Backbone) -> RegionEncoder | CropEncoder:
    """What gives windows their vectors: one pass an image, or R-CNN's one pass a window."""
    if config.method == "rcnn":
        return CropEncoder(backbone, config.levels, reduce=config.reduce)
    return RegionEncoder(
        backbone, config.levels, config.scales, config.max_side, config.rule, config.reduce, config.scale_rule
    )


def create_fc(in_features: int, hidden: Sequence[int]) -> nn.Sequential:
    """fc6, fc7 and so on, each with ReLU and dropout; nothing at all for no sizes."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(hidden, 6):
        linear = nn.Linear(in_features, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers |= {f"fc{number}": linear, f"relu{number}": nn.ReLU(), f"drop{number}": nn.Dropout(0.5)}
        in_features = width
    return nn.Sequential(layers)


def content_of(source: str, image: Image.Image, found: Detections, classes: Sequence[str]) -> dict[str, Any]:
    """What --json tells of an image."""
    return {"source": source, "size": [image.height, image.width], "objects": list_objects(found, classes)}
