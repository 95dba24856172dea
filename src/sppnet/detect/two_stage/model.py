"""The two-stage detector: learned proposals and a region head on the maps of one pass."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.backbones.backbone import create_backbone
from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.paper import PAPER_NETS
from sppnet.data.images import ImageSource, list_sources, load_image, source_name
from sppnet.detect.predict import DetectionResult
from sppnet.detect.two_stage.network import Candidates, TwoStageConfig, TwoStageNetwork, edge_scale
from sppnet.detect.two_stage.regions import decay_duplicates
from sppnet.detect.two_stage.tiles import Tiling, detect_tiles
from sppnet.errors import ImageError, check_choice
from sppnet.inference.parallel import map_images
from sppnet.inference.results import Detections, Failure, filter_by_score
from sppnet.progress import track

_LEAST_SCORE = 1e-3  # of detections, before calibration
_MAX_PAIRS, _MAX_DETECTIONS = (
    2000,
    1000,
)  # pairs of a box and a class that are compared, and detections, per image or tile


class TwoStageDetector(TwoStageNetwork):
    """A detector for images of any size: one pass of the backbone, learned proposals, and a head for each of them."""

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        min_score: float | None = None,
        vectors: bool = False,
        tiling: Tiling | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> list[DetectionResult | Failure]:
        """Detect objects in images.

        Args:
            images: one image or several, see :func:`sppnet.data.images.load_image`.
            min_score: lowest score to report; None for `min_score` of the configuration.
            vectors: whether to return the pyramid vector of each detection.
            tiling: tiles in which large images are processed; None for whole images.
            on_error: ``raise``, or ``skip`` to return a Failure in place of an image that cannot be used.

        Raises:
            sppnet.ImageError: an image cannot be used, and `on_error` is ``raise``.
        """
        options = {"min_score": min_score, "vectors": vectors, "tiling": tiling}
        return list(self.iter_predictions(list_sources(images), on_error=on_error, **options))  # type: ignore[arg-type]

    def iter_predictions(
        self,
        images: Sequence[ImageSource],
        *,
        min_score: float | None = None,
        vectors: bool = False,
        tiling: Tiling | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Iterator[DetectionResult | Failure]:
        """Yield the result of each image, one image per core at a time; arguments as for :meth:`predict`."""
        check_choice("on_error", on_error, ("raise", "skip"))
        threshold = self.config.min_score if min_score is None else min_score

        def load(item: tuple[int, ImageSource]) -> tuple[str, Image.Image] | Failure:
            index, source = item
            name = source_name(source, index)
            try:
                return name, load_image(source)
            except ImageError as error:
                return Failure(name, ImageError(name, error.reason))

        def run(loaded: tuple[str, Image.Image] | Failure) -> DetectionResult | Failure:
            if isinstance(loaded, Failure):
                return loaded
            name, image = loaded
            return self.detect(image, name, threshold, vectors, tiling)

        with evaluation_mode(self), closing(map_images(load, run, enumerate(images), self.device)) as results:
            for result in track(results, "detecting", len(images)):
                if isinstance(result, Failure) and on_error == "raise":
                    raise result.error
                yield result

    @torch.inference_mode()
    def detect(
        self,
        image: Image.Image,
        name: str = "image",
        min_score: float = 0.0,
        vectors: bool = False,
        tiling: Tiling | None = None,
    ) -> DetectionResult:
        """Detect objects in an RGB image; the model must be in evaluation mode.

        Args:
            image: image from :func:`sppnet.data.images.load_image`.
            name: `source` of the result.
            min_score: lowest score to report.
            vectors: see :meth:`predict`.
            tiling: see :meth:`predict`.
        """
        size = (image.height, image.width)
        if tiling is not None:
            found, proposals, rows = detect_tiles(image, tiling, lambda tile: self._detect(tile, min_score, vectors))
        else:
            found, proposals, rows = self._detect(image, min_score, vectors)
        return DetectionResult(name, size, found, self.config.classes, proposals, rows)

    def _detect(
        self, image: Image.Image, min_score: float, vectors: bool
    ) -> tuple[Detections, Float[Tensor, "p 4"], Float[Tensor, "k d"] | None]:
        x = self.prepare(image).to(self.device)
        size, scale = (x.shape[2], x.shape[3]), edge_scale((image.height, image.width), (x.shape[2], x.shape[3]))
        maps = self.maps(self.pad(x))
        candidates = self(maps, size)
        found = filter_by_score(self.read(candidates), min_score)
        rows = None
        if vectors:
            rows = self.pyramids(maps, found.boxes.to(x)).cpu()
        found = Detections(found.boxes / scale, found.scores, found.labels)
        return found, candidates.proposals.cpu() / scale, rows

    def read(self, candidates: Candidates) -> Detections:
        """Convert the candidates of an image into detections, in pixels of the input."""
        weight = self.config.dense_weight
        objectness = candidates.objectness ** (1 - weight) * candidates.dense**weight
        scores = (objectness[:, None] * candidates.classes).float().cpu()
        scores, best = scores.flatten().sort(descending=True, stable=True)
        best = best[scores > _LEAST_SCORE][:_MAX_PAIRS]
        rows, labels = best // candidates.classes.shape[1], best % candidates.classes.shape[1]
        boxes = candidates.boxes.float().cpu()[rows]
        scores, order = decay_duplicates(boxes, scores[: len(best)], labels).sort(descending=True, stable=True)
        kept = order[scores > _LEAST_SCORE][:_MAX_DETECTIONS]
        return Detections(boxes[kept], self.calibrated(scores[: len(kept)]), labels[kept])

    def margins(self, scores: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Return the unbounded scores that `calibration` applies to: the log-odds."""
        return scores.double().logit(1e-9)

    def calibrated(self, scores: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Return the scores to report: by `calibration`, or unchanged without one."""
        if self.config.calibration is None:
            return scores
        slope, offset = self.config.calibration
        return (slope * self.margins(scores) + offset).sigmoid().float()


def create_two_stage(config: TwoStageConfig, weights: str | None = "auto") -> TwoStageDetector:
    """Create a two-stage detector with untrained heads.

    Args:
        config: configuration.
        weights: weights of the backbone, see :func:`sppnet.create_backbone`.

    Raises:
        ValueError: invalid configuration, or unusable weights.
    """
    stage = None if config.backbone in PAPER_NETS else -1
    return TwoStageDetector(config, create_backbone(config.backbone, stage, weights)).eval()
