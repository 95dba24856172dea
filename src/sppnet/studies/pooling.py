"""Comparison of pooling methods on your own images: global mean and maximum, class token, one pyramid, several."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sppnet.classify.evaluate import scores_of, top_classes
from sppnet.classify.model import Classifier
from sppnet.classify.options import WITHOUT_EPOCHS, ClassifyOptions
from sppnet.classify.train import create_model, fit_head
from sppnet.classify.vectors import compute_vectors
from sppnet.data.formats.classification import ClassificationData
from sppnet.devices import pick_device
from sppnet.errors import ImageError
from sppnet.evaluation.calibration import calibration_error, fit_temperature
from sppnet.ops.pyramid import Sizes, pyramid_pool
from sppnet.training.cache import GIGABYTE
from sppnet.training.linear import LinearFit

MEAN, MAXIMUM, TOKEN, PYRAMID, STAGES = "global mean", "global maximum", "class token", "pyramid", "pyramids of stages"
_TEST_SHARE = 5  # one of so many images of each class is for testing


@dataclass(frozen=True)
class PoolingScores:
    """Scores of one pooling method with one split of the images, from 0 to 1.

    Attributes:
        top1, mean_per_class_accuracy: accuracies on the test images.
        ece: calibration error on the test images.
    """

    top1: float
    mean_per_class_accuracy: float
    ece: float


@dataclass(frozen=True)
class PoolingComparison:
    """Results of :func:`compare_pooling`.

    Attributes:
        runs: scores by pooling method, one per seed.
        lengths: lengths of the vectors, by pooling method.
        images: number of images that could be used.
        failures: errors of the others.
    """

    runs: dict[str, list[PoolingScores]]
    lengths: dict[str, int]
    images: int
    failures: tuple[ImageError, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON types."""
        return {
            "pooling": {
                name: {"length": self.lengths[name], "runs": [asdict(scores) for scores in runs]}
                for name, runs in self.runs.items()
            },
            "seeds": len(next(iter(self.runs.values()))),
            "images": self.images,
            "failures": [{"path": error.path, "reason": error.reason} for error in self.failures],
        }


class PooledMaps(Classifier):
    """Network whose vectors are those of all pooling methods, from one pass; its head is not used."""

    def vectors(self, x: Float[Tensor, "n 3 h w"], sizes: Sizes | None = None) -> Float[Tensor, "n d"]:
        """Concatenate mean, maximum and class token of the last map, and the pyramid vectors of all maps."""
        maps = self.maps(x, sizes)
        last = maps[-1]
        token = () if last.prefix is None else (last.prefix[:, 0],)
        pooled = (pyramid_pool(last.data, (1,), reduce=reduce, sizes=last.sizes) for reduce in ("avg", "max"))
        return torch.cat([*pooled, *token, *(self.pool(part.data, part.sizes) for part in maps)], 1)

    @property
    def vector_settings(self) -> dict[str, Any]:
        """Settings of the vectors."""
        return super().vector_settings | {"comparison": True}

    def methods(self, vectors: Float[Tensor, "n d"]) -> Iterator[tuple[str, Float[Tensor, "n _"]]]:
        """Yield the vectors of each pooling method."""
        backbone = self.backbone
        parts = [self.pool.bins * backbone.stage_info(stage).channels for stage in self.stages]
        token = vectors.shape[1] - sum(parts) - 2 * backbone.channels
        mean, maximum, cls, *pyramids = vectors.float().split([backbone.channels, backbone.channels, token, *parts], 1)
        yield MEAN, mean
        yield MAXIMUM, maximum
        if token:
            yield TOKEN, cls
        yield PYRAMID, pyramids[-1]
        if len(pyramids) > 1:
            yield STAGES, self.concatenate(pyramids)


@torch.random.fork_rng(devices=[])
def compare_pooling(data: ClassificationData, options: ClassifyOptions, out: Path, seeds: int = 5) -> PoolingComparison:
    """Fit the head to the vectors of each pooling method, on the same random splits of the images.

    Each seed holds out a fifth of the images of each class for testing. The network runs once for each image, and its
    vectors are cached.

    Args:
        data: images, of which every class has at least two.
        options: network, pyramid and head, which is ``ridge`` or ``svm``; the backbone stays frozen.
        out: folder of the cache, unless `options` has one.
        seeds: number of splits, >= 1, with seeds `options.seed`, `options.seed` + 1, ...

    Raises:
        ValueError: an option is invalid.
    """
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    if options.kind not in WITHOUT_EPOCHS:
        raise ValueError(f"head: expected ridge or svm for a comparison of pooling methods, got {options.kind}")
    torch.manual_seed(options.seed)  # for a network with random weights
    model = create_model(options, data.classes, PooledMaps).to(pick_device(options.device))
    folder = (Path(options.cache) if options.cache else out / "cache") / "vectors"
    limit = options.cache_limit * GIGABYTE
    vectors = compute_vectors(model, data.samples, model.resize, folder, "computing vectors", limit)
    runs: dict[str, list[PoolingScores]] = {}
    lengths = {}
    for name, part in model.methods(vectors.data):
        lengths[name] = part.shape[1]
        for seed in range(options.seed, options.seed + seeds):
            test = _test_images(vectors.labels, seed)
            head = fit_head(part[~test], vectors.labels[~test], len(data.classes), options)
            runs.setdefault(name, []).append(_scores(head, part[test], vectors.labels[test]))
    return PoolingComparison(runs, lengths, len(vectors.labels), vectors.failures)


def verdict(comparison: PoolingComparison) -> str:
    """Compare the best method with the global mean on the same splits, in one sentence."""
    accuracy = {name: [run.mean_per_class_accuracy for run in runs] for name, runs in comparison.runs.items()}
    best = max(accuracy, key=lambda name: statistics.mean(accuracy[name]))
    gains = [100 * (value - base) for value, base in zip(accuracy[best], accuracy[MEAN], strict=True)]
    return (
        f"On your images, the best method was {best}: {statistics.mean(gains):.1f} points above the global mean on"
        f" average, {min(gains):.1f} to {max(gains):.1f} on single splits"
    )


def _test_images(labels: Int[Tensor, " n"], seed: int) -> Bool[Tensor, " n"]:
    """Choose a fifth of each class, at least one image if there are several."""
    generator = torch.Generator().manual_seed(seed)
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        images = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(images), generator=generator)
        count = max(len(images) // _TEST_SHARE, int(len(images) > 1))
        test[images[order[:count]]] = True
    return test


def _scores(head: LinearFit, vectors: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> PoolingScores:
    unit = vectors.shape[1] ** 0.5 * nn.functional.normalize(vectors, dim=1)
    with torch.inference_mode():
        logits = head.layer(unit) / fit_temperature(head.margins, head.labels)
    scores = scores_of(top_classes(logits), labels)
    best, predicted = logits.softmax(1).max(1)
    return PoolingScores(scores.top1, scores.mean_per_class_accuracy, calibration_error(best, predicted == labels))
