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

from sppnet.boxes import Detections, areas, suppress
from sppnet.classify import Classifier
from sppnet.demo_page import REGIONS
from sppnet.encoder import RegionEncoder
from sppnet.proposals import propose
from sppnet.rcnn import CropEncoder

_SCALE = 320  # the network learnt from 224 pixels, and is lost on large maps
_WINDOWS, _SAMPLE, _SHOWN = 2000, 64, 5
_LEAST, _OVERLAP, _INSIDE = 0.5, 0.3, 0.6


@dataclass(frozen=True)
class Regions:
    """What one pass over a photograph found, and what it took.

    Attributes:
        found: windows whose answer is likely, best first.
        windows, distinct: number of windows, and of those that cover other cells than the others.
        source: where the windows come from.
        convolutions, pooling, head: seconds of the one pass, of pooling all windows, and of the classifier on them.
        each: seconds of warping, pass and classifier for one window by itself, measured on `sample` of them.
        sample: number of windows that were passed through the network one by one, in batches of 32.
    """

    found: Detections
    windows: int
    distinct: int
    source: str
    convolutions: float
    pooling: float
    head: float
    each: float
    sample: int

    @property
    def ratio(self) -> float:
        """How often the one pass would go into a pass for each window."""
        return self.each * self.windows / (self.convolutions + self.pooling + self.head)


def find_regions(model: Classifier, photograph: Image.Image) -> Regions:
    """Ask the classifier about every window of a photograph.

    Windows are those of selective search, or of a sliding grid where OpenCV is not installed. A window's score is the
    probability of its likeliest class times the root of its share of the photograph: small pieces of an object are
    often surer than the whole.

    Args:
        model: pools the one level 1, as its own global average.
        photograph: RGB.
    """
    try:
        source = "selective search"
        boxes = propose(photograph, "selective-search", max_windows=_WINDOWS)
    except ModuleNotFoundError:
        source = "a sliding grid, as OpenCV is not installed"
        boxes = propose(photograph, "grid", max_windows=_WINDOWS)
    encoder = RegionEncoder(model.backbone, (1,), (_SCALE,), reduce="avg")
    with torch.inference_mode():
        encoder.distinct(encoder.prepare(photograph.resize((64, 64))), boxes[:1])  # what is compiled or read at first
        times = [time.perf_counter()]
        maps = encoder.prepare(photograph)
        times.append(time.perf_counter())
        distinct = encoder.distinct(maps, boxes)
        times.append(time.perf_counter())
        probabilities = model.head(distinct.data).softmax(1)
        times.append(time.perf_counter())
        crops = CropEncoder(model.backbone, (1,), reduce="avg")
        sample = boxes[:: max(len(boxes) // _SAMPLE, 1)][:_SAMPLE]
        started = time.perf_counter()
        model.head(crops.distinct(photograph, sample).data)
        each = (time.perf_counter() - started) / len(sample)
    found = _best(boxes, probabilities[distinct.index], (photograph.height, photograph.width))
    steps = [after - before for before, after in pairwise(times)]
    return Regions(found, len(boxes), len(distinct.data), source, steps[0], steps[1], steps[2], each, len(sample))


def regions_section(regions: Regions, classes: tuple[str, ...], name: str, picture: str) -> str:
    """The report's section: the annotated picture, what was measured, and the paper's figures beside it.

    Args:
        regions: of the photograph.
        classes: names of the labels.
        name: of the photograph.
        picture: URI of the annotated photograph.
    """
    whole = regions.convolutions + regions.pooling + regions.head
    rows = (
        ("the network, once", f"{1000 * regions.convolutions:.0f} ms"),
        (f"pooling {regions.windows:,} windows, {regions.distinct:,} different", f"{1000 * regions.pooling:.1f} ms"),
        ("the classifier on all of them", f"{1000 * regions.head:.0f} ms"),
        ("in all", f"{1000 * whole:.0f} ms"),
        (f"the network for each window: {regions.windows:,} times {1000 * regions.each:.1f} ms, measured on a sample of"
         f" {regions.sample} windows", f"{regions.each * regions.windows:.1f} s"),
        ("so one pass is faster", f"{regions.ratio:.0f} times"),
    )  # fmt: skip
    return Template(REGIONS).substitute(
        name=escape(name),
        windows=f"{regions.windows:,}",
        source=regions.source,
        picture=picture,
        alt=escape(f"{name} with the likeliest windows outlined"),
        objects=escape(
            ", ".join(dict.fromkeys(classes[label] for label in regions.found.labels.tolist())) or "nothing"
        ),
        rows="".join(f'<tr><th scope="row">{label}</th><td>{value}</td></tr>' for label, value in rows),
    )


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
