"""The detection part of the demonstration: some 2,000 windows of a photograph in one pass, against a pass for each."""

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
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.results import Detections
from sppnet.ops.boxes import areas, suppress

# The network learnt from 224 pixels: on maps of the paper's size it takes parts of an object for anything, and at 224
# a window of some size is half of the map.
_SCALE, _PAPER_SCALE = 384, 688
_WINDOWS, _SHOWN = 2000, 5
_LEAST, _OVERLAP, _INSIDE = 0.6, 0.3, 0.6
_RUNS, _SAMPLE = 3, 64


@dataclass(frozen=True)
class Pass:
    """What one pass over a photograph takes, with an answer for each of its windows.

    Attributes:
        scale: shorter side at which the network saw the photograph, pixels.
        distinct: number of windows that do not cover the same cells as another.
        convolutions, pooling, head: seconds of resizing and the network, of pooling all windows, and of the classifier
            on them; the run with the median sum.
    """

    scale: int
    distinct: int
    convolutions: float
    pooling: float
    head: float

    @property
    def seconds(self) -> float:
        """All three together."""
        return self.convolutions + self.pooling + self.head


@dataclass(frozen=True)
class Regions:
    """What one pass over a photograph found, and what it took.

    Attributes:
        found: windows whose answer is likely, best first; the scores are probabilities.
        windows: how many were asked about.
        grid: the windows are those of a grid, as OpenCV or its contrib modules are missing.
        search: seconds in which the windows were found.
        once: the pass that found them.
        paper: a pass at the paper's size.
        each: seconds of warping, network and classifier for one window by itself, measured on `sample` of them in
            batches of 32.
        sample: how many windows went through the network by themselves.
    """

    found: Detections
    windows: int
    grid: bool
    search: float
    once: Pass
    paper: Pass
    each: float
    sample: int

    def ratio(self, one: Pass) -> float:
        """How many times as long as that one pass a pass for each window would take."""
        return self.each * self.windows / one.seconds


def find_regions(model: Classifier, photograph: Image.Image) -> Regions:
    """Ask the classifier about every window of a photograph.

    Windows are those of selective search, or of a sliding grid without OpenCV. They are ordered by the probability of
    their likeliest class times the root of their share of the photograph: small pieces of an object are often surer
    than the whole.

    Args:
        model: pools the one level 1, as its own global average.
        photograph: RGB.
    """
    started, grid = time.perf_counter(), False
    try:
        boxes = propose(photograph, "selective-search", max_windows=_WINDOWS)
    except ModuleNotFoundError:
        boxes, grid = propose(photograph, "grid", max_windows=_WINDOWS), True
    search = time.perf_counter() - started
    with torch.inference_mode():
        once, probabilities = _pass(model, photograph, boxes, _SCALE)
        paper, _ = _pass(model, photograph, boxes, _PAPER_SCALE)
        # The windows are sorted from left to right; these are of all places.
        sample = boxes[torch.linspace(0, len(boxes) - 1, min(_SAMPLE, len(boxes))).long()]
        crops = CropEncoder(model.backbone, (1,), reduce="avg")
        crops.distinct(photograph, sample[:32])  # the first run of a new shape takes longer
        started = time.perf_counter()
        model.head(crops.distinct(photograph, sample).data).softmax(1)
        each = (time.perf_counter() - started) / len(sample)
    found = _best(boxes, probabilities, (photograph.height, photograph.width))
    return Regions(found, len(boxes), grid, search, once, paper, each, len(sample))


def regions_section(regions: Regions, classes: tuple[str, ...], name: str, picture: str) -> str:
    """The report's section: the annotated picture, what was measured, and the paper's figures beside it.

    Args:
        regions: of the photograph.
        classes: names of the labels.
        name: of the photograph.
        picture: URI of the annotated photograph.
    """
    passes = (regions.once, regions.paper)
    count = f"{regions.windows:,}"
    rows = (
        ("different windows among them", [f"{one.distinct:,}" for one in passes]),
        ("the network, once", [f"{1000 * one.convolutions:,.0f} ms" for one in passes]),
        ("pooling them all", [f"{1000 * one.pooling:,.0f} ms" for one in passes]),
        ("the classifier on all of them", [f"{1000 * one.head:,.0f} ms" for one in passes]),
        ("one pass in all", [f"{1000 * one.seconds:,.0f} ms" for one in passes]),
        (
            f"a pass for each, by the sample: {count} × {1000 * regions.each:.1f} ms",
            [f"{regions.each * regions.windows:.1f} s"] * len(passes),
        ),
        ("so many times as long", [f"{regions.ratio(one):.0f}" for one in passes]),
    )
    answers = zip(regions.found.labels.tolist(), regions.found.scores.tolist(), strict=True)
    objects = ", ".join(f"{classes[label]} ({100 * score:.0f} %)" for label, score in answers)
    return Template(REGIONS).substitute(
        name=escape(name),
        windows=count,
        source=(
            "of a sliding grid; those of selective search need OpenCV with its contrib modules:"
            ' <code>pip install "sppnet[detect]"</code>'
            if regions.grid
            else "that selective search takes for possible objects"
        ),
        scale=regions.once.scale,
        paper=regions.paper.scale,
        least=f"{100 * _LEAST:.0f} %",
        picture=picture,
        alt=escape(f"{name} with the likeliest windows outlined"),
        objects=escape(objects) or "none here",
        rows="".join(
            f'<tr><th scope="row">{label}</th>' + "".join(f"<td>{value}</td>" for value in values) + "</tr>"
            for label, values in rows
        ),
        sample=regions.sample,
        search=f"{regions.search:.1f}",
    )


def _pass(
    model: Classifier, photograph: Image.Image, boxes: Float[Tensor, "k 4"], scale: int
) -> tuple[Pass, Float[Tensor, "k c"]]:
    """What the pass takes, and the probabilities of each window."""
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

    _, probabilities, index = run()  # also compiles what is not yet compiled
    steps = sorted((run()[0] for _ in range(_RUNS)), key=sum)[_RUNS // 2]
    return Pass(scale, len(probabilities), *steps), probabilities[index]


def _best(boxes: Float[Tensor, "k 4"], probabilities: Float[Tensor, "k c"], size: tuple[int, int]) -> Detections:
    """The best windows of each class, none of which lies mostly inside a better one."""
    likely, labels = probabilities.max(1)
    scores = likely * (areas(boxes) / (size[0] * size[1])).sqrt()
    rows: list[int] = []
    for label in labels[likely >= _LEAST].unique().tolist():
        mine = ((labels == label) & (likely >= _LEAST)).nonzero()[:, 0]
        rows += mine[suppress(boxes[mine], scores[mine], _OVERLAP)].tolist()
    rows.sort(key=lambda row: -float(scores[row]))
    kept: list[int] = []
    for row in rows:
        if all(_inside(boxes[row], boxes[other]) < _INSIDE for other in kept):
            kept.append(row)
    chosen = torch.tensor(kept[:_SHOWN], dtype=torch.long)
    return Detections(boxes[chosen], likely[chosen], labels[chosen])


def _inside(a: Float[Tensor, "4"], b: Float[Tensor, "4"]) -> float:
    """The shared area over the smaller one's."""
    shared = areas(torch.cat((torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:]))))
    return float(shared / torch.minimum(areas(a), areas(b)).clamp(min=1e-9))
