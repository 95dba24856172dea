"""Demo of region classification: 2,000 windows of a photograph in one pass, compared with one pass per window."""

import time
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from string import Template

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.classify.model import Classifier
from sppnet.demo.page import REGIONS
from sppnet.detect.classic.rcnn import CropEncoder
from sppnet.detect.proposals import propose
from sppnet.detect.suppression import suppress
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.results import Detections
from sppnet.ops.boxes import areas

# The network was trained at 224 pixels: at the paper's scale it misclassifies parts of objects, and at 224 medium-sized
# windows cover half of the feature map.
_SCALE, _PAPER_SCALE = 384, 688
_MAX_WINDOWS, _MAX_SHOWN = 2000, 5
_MIN_PROBABILITY, _NMS_IOU, _MAX_CONTAINED = 0.6, 0.3, 0.6
_RUNS, _SAMPLE = 3, 64


@dataclass(frozen=True)
class PassTiming:
    """Timing of one pass that classifies all windows of a photograph, from the run with the median total time.

    Attributes:
        scale: shorter side of the network's input, in pixels.
        distinct: number of windows that cover different cells of the feature map.
        convolutions: seconds for resizing and the backbone.
        pooling: seconds for pooling all windows.
        head: seconds for classifying all windows.
    """

    scale: int
    distinct: int
    convolutions: float
    pooling: float
    head: float

    @property
    def seconds(self) -> float:
        """Total seconds."""
        return self.convolutions + self.pooling + self.head


@dataclass(frozen=True)
class Regions:
    """Classified windows of a photograph and the measured times.

    Attributes:
        found: most likely windows, best first; the scores are probabilities.
        windows: number of windows classified.
        grid: whether the windows form a grid because OpenCV or its contrib modules are missing.
        search: seconds for finding the windows.
        once: the pass whose windows are `found`.
        paper: a pass at the paper's scale.
        each: seconds to warp and classify one window on its own, averaged over `sample` windows in batches of 32.
        sample: number of windows timed on their own.
    """

    found: Detections
    windows: int
    grid: bool
    search: float
    once: PassTiming
    paper: PassTiming
    each: float
    sample: int

    def ratio(self, single: PassTiming) -> float:
        """Return the time of one pass per window divided by the time of `single`."""
        return self.each * self.windows / single.seconds


def find_regions(model: Classifier, photograph: Image.Image) -> Regions:
    """Classify every window of a photograph.

    Windows come from selective search, or from a sliding grid without OpenCV. They are ranked by the probability of
    their most likely class times the square root of their share of the photograph's area, because small parts of an
    object often score higher than the whole.

    Args:
        model: classifier with global average pooling: the single level 1.
        photograph: RGB image.
    """
    started, grid = time.perf_counter(), False
    try:
        boxes = propose(photograph, "selective-search", max_windows=_MAX_WINDOWS)
    except ModuleNotFoundError:
        boxes, grid = propose(photograph, "grid", max_windows=_MAX_WINDOWS), True
    search = time.perf_counter() - started
    with torch.inference_mode():
        once, probabilities = _time_pass(model, photograph, boxes, _SCALE)
        paper, _ = _time_pass(model, photograph, boxes, _PAPER_SCALE)
        # Windows are sorted from left to right; spread the sample over the photograph.
        sample = boxes[torch.linspace(0, len(boxes) - 1, min(_SAMPLE, len(boxes))).long()]
        crops = CropEncoder(model.backbone, (1,), reduce="avg")
        crops.distinct(photograph, sample[:32])  # warm-up: the first run of a new shape is slower
        started = time.perf_counter()
        model.head(crops.distinct(photograph, sample).data).softmax(1)
        each = (time.perf_counter() - started) / len(sample)
    found = _best(boxes, probabilities, (photograph.height, photograph.width))
    return Regions(found, len(boxes), grid, search, once, paper, each, len(sample))


def regions_section(regions: Regions, classes: tuple[str, ...], name: str, picture: str) -> str:
    """Render the report section: the annotated picture, the measured times and the paper's figures.

    Args:
        regions: result of :func:`find_regions`.
        classes: class names, in label order.
        name: file name of the photograph.
        picture: URI of the annotated photograph.
    """
    passes = (regions.once, regions.paper)
    count = f"{regions.windows:,}"
    rows = (
        ("distinct windows", [f"{timing.distinct:,}" for timing in passes]),
        ("network, once", [f"{1000 * timing.convolutions:,.0f} ms" for timing in passes]),
        ("pooling all windows", [f"{1000 * timing.pooling:,.0f} ms" for timing in passes]),
        ("classifier on all windows", [f"{1000 * timing.head:,.0f} ms" for timing in passes]),
        ("one pass in total", [f"{1000 * timing.seconds:,.0f} ms" for timing in passes]),
        (
            f"one pass per window: {count} × {1000 * regions.each:.1f} ms",
            [f"{regions.each * regions.windows:.1f} s"] * len(passes),
        ),
        ("speedup", [f"{regions.ratio(timing):.0f}" for timing in passes]),
    )
    predictions = zip(regions.found.labels.tolist(), regions.found.scores.tolist(), strict=True)
    objects = ", ".join(f"{classes[label]} ({100 * score:.0f}%)" for label, score in predictions)
    return Template(REGIONS).substitute(
        name=escape(name),
        windows=count,
        source=(
            "The windows form a sliding grid; selective search needs OpenCV with its contrib modules:"
            ' <code>pip install ".[detect]"</code>.'
            if regions.grid
            else "The windows are object proposals from selective search."
        ),
        scale=regions.once.scale,
        paper=regions.paper.scale,
        threshold=f"{100 * _MIN_PROBABILITY:.0f}%",
        picture=picture,
        alt=escape(f"{name} with boxes around the most likely objects"),
        objects=escape(objects) or "none",
        rows="".join(
            f'<tr><th scope="row">{label}</th>' + "".join(f"<td>{value}</td>" for value in values) + "</tr>"
            for label, values in rows
        ),
        sample=regions.sample,
        search=f"{regions.search:.1f}",
    )


def _time_pass(
    model: Classifier, photograph: Image.Image, boxes: Float[Tensor, "k 4"], scale: int
) -> tuple[PassTiming, Float[Tensor, "k c"]]:
    """Time one pass and return the class probabilities of each window."""
    encoder = RegionEncoder(model.backbone, (1,), (scale,), reduce="avg")

    def run() -> tuple[list[float], Float[Tensor, "n c"], Tensor]:
        times = [time.perf_counter()]
        maps = encoder.prepare(photograph)
        times.append(time.perf_counter())
        distinct = encoder.distinct(maps, boxes)
        times.append(time.perf_counter())
        probabilities = model.head(distinct.data).softmax(1)
        times.append(time.perf_counter())
        return [after - before for before, after in pairwise(times)], probabilities, distinct.index

    _, probabilities, index = run()  # warm-up, including compilation
    steps = sorted((run()[0] for _ in range(_RUNS)), key=sum)[_RUNS // 2]
    return PassTiming(scale, len(probabilities), *steps), probabilities[index]


def _best(boxes: Float[Tensor, "k 4"], probabilities: Float[Tensor, "k c"], size: tuple[int, int]) -> Detections:
    """Select the best windows of each class, skipping those mostly inside a better one."""
    best, labels = probabilities.max(1)
    scores = best * (areas(boxes) / (size[0] * size[1])).sqrt()
    rows: list[int] = []
    for label in labels[best >= _MIN_PROBABILITY].unique().tolist():
        candidates = ((labels == label) & (best >= _MIN_PROBABILITY)).nonzero()[:, 0]
        rows += candidates[suppress(boxes[candidates], scores[candidates], _NMS_IOU)].tolist()
    rows.sort(key=lambda row: -float(scores[row]))
    kept: list[int] = []
    for row in rows:
        if all(_contained(boxes[row], boxes[better]) < _MAX_CONTAINED for better in kept):
            kept.append(row)
    chosen = torch.tensor(kept[:_MAX_SHOWN], dtype=torch.long)
    return Detections(boxes[chosen], best[chosen], labels[chosen])


def _contained(a: Float[Tensor, "4"], b: Float[Tensor, "4"]) -> float:
    """Return the intersection as a share of the smaller box."""
    shared = areas(torch.cat((torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:]))))
    return float(shared / torch.minimum(areas(a), areas(b)).clamp(min=1e-9))
