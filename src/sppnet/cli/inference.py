"""`sppnet evaluate` and `sppnet predict`: options, and which task's answer a run gives."""

from collections.abc import Callable
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from sppnet.classify.model import Classifier
from sppnet.classify.views import Views
from sppnet.cli import classify, detect, engine, segment
from sppnet.data.images import MAX_PIXELS
from sppnet.data.resize import POLICIES
from sppnet.detect.model import Detector
from sppnet.devices import pick_device
from sppnet.inference.tiles import OVERLAP
from sppnet.registry import load
from sppnet.segment.model import Segmenter

_RESIZE = f"classifiers: size policy: {', '.join(POLICIES)}; a side follows a colon, as in shorter-side:256"
_VIEWS = f"classifiers: views of an image: {', '.join(get_args(Views))}"
_LEAST = "detectors: least score that is told; left out: -0.5 of an SVM, else 0.5; there are none below -1.5, else 0.01"
_CACHE = "detectors: folder that keeps proposals; left out: evaluate has them in RUN, predict keeps none"
_CONTEXT = "segmenters: tiles see a reduced copy of the whole image in ASPP's image-level branch"
_OUT = "detectors, segmenters: write pictures and labels there; --engine ray: write the answers there"
# Options that not every task has: the tasks that have it, and the value when it is not given.
_OF: dict[str, tuple[tuple[type, ...], Any]] = {
    "resize": ((Classifier,), None),
    "compare": ((Classifier,), None),
    "sizes": ((Classifier,), None),
    "views": ((Classifier,), "full"),
    "batch": ((Classifier,), 32),
    "out": ((Detector, Segmenter), None),
    "pictures": ((Detector, Segmenter), None),
    "cache": ((Detector,), None),
    "min_score": ((Detector,), None),
    "proposals": ((Detector,), None),
    "workers": ((Detector,), 2),
    "svd": ((Detector,), None),
    "head": ((Detector,), "float32"),
    "ignore": ((Segmenter,), None),
    "classes": ((Segmenter,), None),
    "output": ((Segmenter,), segment.OUTPUT),
    "scales": ((Segmenter,), "1"),
    "flip": ((Segmenter,), False),
    "memory": ((Segmenter,), "4GB"),
    "tile": ((Segmenter,), None),
    "overlap": ((Segmenter,), OVERLAP),
    "global_context": ((Segmenter,), False),
    "max_pixels": ((Segmenter,), MAX_PIXELS),
}


def evaluate_parser() -> ArgumentParser:
    """Options of `sppnet evaluate`."""
    parser = ArgumentParser(description="Measure a model on labelled images, on images with boxes or with masks.")
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network")
    add("data", help="as for training: class folders or CSV; VOC or COCO; or images and masks")
    add("--split", type=str | None, help="of the data; left out: test, or val where there is no test")
    add("--resize", type=str | None, metavar="POLICY", help=f"{_RESIZE}; left out: the run's own")
    add("--compare", type=str | None, metavar="POLICIES", help="classifiers: several policies side by side, by commas")
    add("--sizes", type=str | None, metavar="SIDES", help="classifiers: accuracy at these shorter sides: 160,224,320")
    add("--views", type=str, default="full", help=_VIEWS)
    add("--pictures", type=str | None, metavar="DIR", help="detectors, segmenters: write curves, best and worst there")
    add("--ignore", type=str | None, metavar="IDS", help="segmenters: all ids of masks that do not count: 0,255")
    add("--classes", type=str | None, metavar="FILE", help=f"segmenters: {segment.CLASSES}, then the run's")
    _add_detector_options(parser)
    _add_segmenter_options(parser)
    return parser


def predict_parser() -> ArgumentParser:
    """Options of `sppnet predict`."""
    parser = ArgumentParser(
        description="Classify images, find objects in them or label their pixels, each at its own size."
    )
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network")
    add("images", nargs="+", help="files or folders")
    add("--resize", type=str | None, metavar="POLICY", help=f"{_RESIZE}; left out: the run's own")
    add("--views", type=str, default="full", help=_VIEWS)
    add("--batch", type=int, default=32, help="classifiers: images read at a time; the answers do not depend on it")
    add("--out", type=str | None, metavar="DIR", help=_OUT)
    add("--min-score", type=float | None, help=_LEAST)
    add("--output", default=segment.OUTPUT, help="segmenters: what is written: palette, overlay, probabilities")
    add("--max-pixels", type=int, default=MAX_PIXELS, help="segmenters: larger images are refused")
    engine.add_engine_options(parser)
    add("--shard", type=int, default=engine.SHARD, help="ray: images of a file; a process that dies loses one file")
    _add_detector_options(parser)
    _add_segmenter_options(parser)
    return parser


def _add_detector_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--svd", type=str | None, metavar="RANKS", help="detectors: fc6 and fc7 as products of these ranks: 256,128")
    add("--head", default="float32", help="detectors: float32, or bfloat16 for the layers after the pyramid")
    add("--proposals", type=str | None, help=f"detectors: {detect.PROPOSALS}; left out: as in training")
    add("--workers", type=int, default=2, help="detectors: images searched for proposals at a time")
    add("--cache", type=str | None, metavar="DIR", help=_CACHE)


def _add_segmenter_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--scales", default="1", help="segmenters: average over these factors of size, such as 0.75,1,1.25")
    add("--flip", action="store_true", help="segmenters: average over mirror images, too")
    add("--memory", default="4GB", help="segmenters: an image that takes more in one pass is cut into tiles")
    add("--tile", type=int | None, help="segmenters: side of tiles in pixels, whatever the memory")
    add("--overlap", type=int, default=OVERLAP, help="segmenters: pixels that tiles have in common")
    add("--global-context", action="store_true", help=_CONTEXT)
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--json", action="store_true", help="print JSON and nothing else on standard output")


def evaluate(arguments: Namespace) -> int:
    """Score a run."""
    return _ask(arguments, {Classifier: classify.evaluate, Detector: detect.evaluate, Segmenter: segment.evaluate})


def predict(arguments: Namespace) -> int:
    """Answer for images."""
    if arguments.engine == "ray":
        return engine.predict(arguments, _refuse)
    engine.refuse_engine_options(arguments)
    return _ask(arguments, {Classifier: classify.predict, Detector: detect.predict, Segmenter: segment.predict})


def _ask(arguments: Namespace, commands: dict[type, Callable[[Any, Namespace], int]]) -> int:
    model = load(arguments.run)
    _refuse(arguments, type(model))
    return commands[type(model)](model.to(pick_device(arguments.device)), arguments)


def _refuse(arguments: Namespace, task: type) -> None:
    """No option is passed over in silence."""
    for name, (tasks, default) in _OF.items():
        on_ray = name == "out" and arguments.get("engine") == "ray"  # where every task's answers are written
        if task not in tasks and not on_ray and arguments.get(name, default) != default:
            whose = " and ".join(f"{one.__name__.lower()}s" for one in tasks)
            raise ValueError(
                f"{name.replace('_', '-')}: an option for {whose}; {arguments.run} holds a {task.__name__.lower()}"
            )
