"""Training of a two-stage detector on the maps of a frozen backbone, or of the whole network."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.stages import freeze_stages
from sppnet.backbones.weights import weights_digest
from sppnet.data.formats.detection import DetectionData, DetectionSample
from sppnet.data.images import image_size, load_image
from sppnet.detect.evaluate import DetectionReport, report_detections, warn_of_unknown
from sppnet.detect.predict import DetectionResult
from sppnet.detect.two_stage.batches import ObjectBatches
from sppnet.detect.two_stage.losses import Objects, RegionTargets, class_weights, dense_loss, region_loss
from sppnet.detect.two_stage.maps import CachedMaps, cache_maps
from sppnet.detect.two_stage.model import TwoStageDetector
from sppnet.detect.two_stage.network import Candidates, TwoStageConfig, edge_scale
from sppnet.detect.two_stage.options import TwoStageOptions
from sppnet.detect.two_stage.regions import propose, sample
from sppnet.devices import fast_precision
from sppnet.errors import ImageError, list_some
from sppnet.inference.parallel import map_ordered
from sppnet.inference.results import Detections, Failure
from sppnet.training.cache import GIGABYTE
from sppnet.training.loop import fit

_PROPOSALS = 150  # of an image, among which training regions are drawn
_DENSE_WEIGHTS = (0.0, 0.15, 0.3, 0.5)


class TwoStageLoss(nn.Module):
    """Loss of both heads, which are trained together.

    Args:
        network: network to train.
        weights: weight of the objects of each class.
        frozen: whether inputs are maps of the frozen backbone, rather than pixels.
    """

    weights: Tensor

    def __init__(self, network: TwoStageDetector, weights: Float[Tensor, " classes"], frozen: bool) -> None:
        super().__init__()
        self.dense, self.region = network.dense, network.region
        self.backbone = None if frozen else network.backbone
        self._network = [network]  # in a list, because its frozen parts are not trained
        self.register_buffer("weights", weights, persistent=False)

    def forward(
        self, inputs: Sequence[Tensor], sizes: Sequence[tuple[int, int]], objects: Sequence[Objects]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the loss of a batch, and the share of its positive regions that are classified correctly."""
        (network,) = self._network
        maps = list(inputs) if self.backbone is None else network.maps(network.pad(inputs[0]))
        with fast_precision(maps[0].device):
            output = self.dense(*maps)
        loss = dense_loss(output, objects, self.weights)
        drawn = []
        for image, size in enumerate(sizes):
            with torch.no_grad():
                drawn.append(sample(propose(output, image, size, _PROPOSALS).boxes, objects[image]))
        targets = RegionTargets(*map(torch.cat, zip(*drawn, strict=True)))
        vectors = network.vectors(output, maps, [part.proposals for part in drawn])
        if not len(vectors):
            return loss, loss.detach() * 0
        with fast_precision(maps[0].device):
            predicted = self.region(vectors)
        positive = targets.labels >= 0
        right = (predicted.logits.argmax(1) == targets.labels)[positive].float().sum() / positive.sum().clamp(min=1)
        return loss + region_loss(predicted, targets), right


def two_stage_config(options: TwoStageOptions, classes: tuple[str, ...]) -> TwoStageConfig:
    """Return the configuration of the detector to train."""
    names = ("backbone", "levels", "side", "max_side", "dropout", "windows")
    return TwoStageConfig(classes, **{name: getattr(options, name) for name in names})


def fit_two_stage(
    model: TwoStageDetector,
    samples: Sequence[DetectionSample],
    val_set: DetectionData | None,
    options: TwoStageOptions,
    out: Path,
    cache: Path,
    failures: list[ImageError],
    fabric: Any,
    stages: dict[str, float],
) -> tuple[bool, DetectionReport | None]:
    """Train a detector, starting from the checkpoint in `out` if there is one.

    With validation images, the best epoch is kept, and the weight of the dense head's score that gives the highest
    average precision is chosen.

    Args:
        model: detector; moved to the device of `fabric`.
        samples: training images.
        val_set: validation images, or None.
        options: training options.
        out: run folder.
        cache: folder of the maps of a frozen backbone.
        failures: list to which images that cannot be read are added.
        fabric: result of :func:`sppnet.training.processes.launch`.
        stages: dictionary to which the seconds of each stage are added.

    Returns:
        False if the training was interrupted, and the report of the validation images after the last epoch.
    """
    started = time.monotonic()
    model.to(fabric.device)
    freeze_stages(model.backbone, options.train_stages)
    read: Callable[[Path, bool], list[Tensor]]
    with ExitStack() as stack:
        if options.frozen:
            maps = stack.enter_context(_cache(model, [part.path for part in samples], options, cache, mirrored=True))
            failures += maps.failures
            read = maps.read
        else:
            failures += filter(None, map_ordered(_header_error, [part.path for part in samples]))
            read = lambda path, mirrored: [_load(model, path, mirrored)[0]]  # noqa: E731
        validate = _Validation(model, val_set, stack, options, cache)
        stages["feature maps"] = time.monotonic() - started
        started = time.monotonic()
        bad = {failure.path for failure in failures}
        usable = [part for part in samples if str(part.path) not in bad]
        labels = torch.cat([torch.zeros(0, dtype=torch.long), *(part.labels[~part.difficult] for part in usable)])
        if not len(labels):
            raise ValueError(
                f"data: expected an object that is not difficult, got none in {len(usable)} readable images; the errors"
                f" of the others: {list_some(str(failure) for failure in failures)}"
            )
        module = TwoStageLoss(model, class_weights(labels, len(model.config.classes)), options.frozen)
        batches = ObjectBatches(
            model, usable, read, options.batch, options.seed, 0 if options.frozen else options.workers, fabric
        )

        def objective(output: tuple[Tensor, Tensor], objects: list[Objects]) -> tuple[Tensor, float]:
            return output[0], float(output[1]) * len(objects)

        finished = fit(
            module, batches, options, out, validate, failures, objective, right="region_accuracy", fabric=fabric
        )
        stages["training"] = time.monotonic() - started
        if finished and fabric.global_rank == 0:
            validate.choose_dense_weight()
    return finished, validate.report


class _Validation:
    """Scores of a detector in training; the maps of a frozen backbone are computed once."""

    def __init__(
        self,
        model: TwoStageDetector,
        data: DetectionData | None,
        stack: ExitStack,
        options: TwoStageOptions,
        cache: Path,
    ) -> None:
        self.model, self.data = model, data
        self.read: Callable[[Path], list[Tensor]] | None = None
        self.report: DetectionReport | None = None
        self.candidates: list[tuple[Candidates, tuple[int, int]] | Failure] = []
        if data is not None:
            warn_of_unknown(data.classes[len(model.config.classes) :])
        if data is not None and options.frozen:
            paths = [part.path for part in data.samples]
            self.read = stack.enter_context(_cache(model, paths, options, cache, mirrored=False)).read

    def __call__(self) -> Mapping[str, float] | None:
        """Score the validation images with the current weights."""
        if self.data is None:
            return None
        paths = [part.path for part in self.data.samples]
        with evaluation_mode(self.model):
            self.candidates = list(map_ordered(self._detect, paths))
        self.report = self._score(self.data)
        return {"map": self.report.scores.map, "ap50": self.report.scores.ap50}

    def choose_dense_weight(self) -> None:
        """Set the weight of the dense head's score to that of the highest average precision."""
        if self.data is None:
            return
        reports = {}
        for weight in _DENSE_WEIGHTS:
            self.model.config = replace(self.model.config, dense_weight=weight)
            reports[weight] = self._score(self.data)
        best = max(reports, key=lambda weight: reports[weight].scores.map)
        self.model.config, self.report = replace(self.model.config, dense_weight=best), reports[best]

    @torch.inference_mode()
    def _detect(self, path: Path) -> tuple[Candidates, tuple[int, int]] | Failure:
        model = self.model
        try:
            original = image_size(path)
            if self.read is None:
                maps = model.maps(model.pad(_load(model, path)).to(model.device))
            else:
                maps = [data[None].to(model.device) for data in self.read(path)]
        except ImageError as error:
            return Failure(str(path), error)
        candidates = model(maps, model.resized(*original))
        return Candidates(*(values.float().cpu() for values in candidates)), original

    def _score(self, data: DetectionData) -> DetectionReport:
        results: list[DetectionResult | Failure] = []
        for part, found in zip(data.samples, self.candidates, strict=True):
            if isinstance(found, Failure):
                results.append(found)
                continue
            candidates, size = found
            scale = edge_scale(size, self.model.resized(*size))
            detected = self.model.read(candidates)
            detections = Detections(detected.boxes / scale, detected.scores, detected.labels)
            proposals = candidates.proposals / scale
            results.append(DetectionResult(str(part.path), size, detections, self.model.config.classes, proposals))
        return report_detections(data, results, self.model.config)


def _header_error(path: Path) -> ImageError | None:
    """Return the error of a file whose size cannot be read."""
    try:
        image_size(path)
    except ImageError as error:
        return error
    return None


def _load(model: TwoStageDetector, path: Path, mirrored: bool = False) -> Float[Tensor, "1 3 h w"]:
    """Return the normalized pixels of an image, or of its mirror image."""
    x = model.prepare(load_image(path))
    return x.flip(3) if mirrored else x


def _cache(
    model: TwoStageDetector, paths: Sequence[Path], options: TwoStageOptions, folder: Path, mirrored: bool
) -> AbstractContextManager[CachedMaps]:
    """Compute the missing maps of images and open their cache."""
    bfloat16 = not isinstance(fast_precision(model.device), nullcontext)
    settings = {
        "content": "feature maps",
        "backbone": options.backbone,
        "weights": weights_digest(model.backbone),
        "stages": model.stages,
        "side": options.side,
        "max_side": options.max_side,
        "bfloat16": bfloat16,
    }
    return cache_maps(
        model.backbone,
        lambda path, flip: model.pad(_load(model, path, flip)),
        model.maps,
        paths,
        folder,
        settings,
        options.cache_limit * GIGABYTE,
        model.device,
        mirrored,
    )
