"""`sppnet evaluate` and `sppnet predict`: options, and which task's answer a run gives."""

from collections.abc import Callable, Mapping
from typing import get_args

from jsonargparse import ArgumentParser, Namespace

from sppnet.classify import Classifier
from sppnet.commands import classify, detect
from sppnet.data.resize import POLICIES
from sppnet.detect import Detector
from sppnet.runs import load, pick_device
from sppnet.views import Views

_RESIZE = f"classifiers: size policy: {', '.join(POLICIES)}; a side follows a colon, as in shorter-side:256"
_VIEWS = f"classifiers: views of an image: {', '.join(get_args(Views))}"
_LEAST = "detectors: least score that is told; left out: -0.5 of an SVM, else 0.5; there are none below -1.5, else 0.01"
_CACHE = "detectors: folder that keeps proposals; left out: evaluate has them in RUN, predict keeps none"
# Options that one task has and the other has not, with the values that they have when they are not given.
_CLASSIFY = {"resize": None, "compare": None, "views": "full", "batch": 32}
_DETECT = {
    "out": None,
    "pictures": None,
    "cache": None,
    "min_score": None,
    "proposals": None,
    "workers": 2,
    "svd": None,
    "head": "float32",
}


def evaluate_parser() -> ArgumentParser:
    """Options of `sppnet evaluate`."""
    parser = ArgumentParser(description="Measure a classifier on labelled images, or a detector on images with boxes.")
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network")
    add("data", help="classifiers: class folders, splits of them, or CSV file with path,label; detectors: VOC or COCO")
    add("--split", type=str | None, help="of the data; left out: test, or val where there is no test")
    add("--resize", type=str | None, metavar="POLICY", help=f"{_RESIZE}; left out: the run's own")
    add("--compare", type=str | None, metavar="POLICIES", help="classifiers: several policies side by side, by commas")
    add("--views", type=str, default="full", help=_VIEWS)
    add("--pictures", type=str | None, metavar="DIR", help="detectors: write curves, best and worst detections there")
    _add_detector_options(parser)
    return parser


def predict_parser() -> ArgumentParser:
    """Options of `sppnet predict`."""
    parser = ArgumentParser(description="Classify images, or find objects in them, each at its own size.")
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network")
    add("images", nargs="+", help="files or folders")
    add("--resize", type=str | None, metavar="POLICY", help=f"{_RESIZE}; left out: the run's own")
    add("--views", type=str, default="full", help=_VIEWS)
    add("--batch", type=int, default=32, help="classifiers: images read at a time; the answers do not depend on it")
    add("--out", type=str | None, metavar="DIR", help="detectors: write each image there with its objects drawn")
    add("--min-score", type=float | None, help=_LEAST)
    _add_detector_options(parser)
    return parser


def _add_detector_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--svd", type=str | None, metavar="RANKS", help="detectors: fc6 and fc7 as products of these ranks: 256,128")
    add("--head", default="float32", help="detectors: float32, or bfloat16 for the layers after the pyramid")
    add("--proposals", type=str | None, help=f"detectors: {detect.PROPOSALS}; left out: as in training")
    add("--workers", type=int, default=2, help="detectors: images searched for proposals at a time")
    add("--cache", type=str | None, metavar="DIR", help=_CACHE)
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--json", action="store_true", help="print JSON and nothing else on standard output")


def evaluate(arguments: Namespace) -> int:
    """Score a run."""
    return _ask(arguments, classify.evaluate, detect.evaluate)


def predict(arguments: Namespace) -> int:
    """Answer for images."""
    return _ask(arguments, classify.predict, detect.predict)


def _ask(
    arguments: Namespace,
    of_classifier: Callable[[Classifier, Namespace], int],
    of_detector: Callable[[Detector, Namespace], int],
) -> int:
    model = load(arguments.run)
    if isinstance(model, Detector):
        _refuse(arguments, _CLASSIFY, "classifiers", "a detector")
        return of_detector(model.to(pick_device(arguments.device)), arguments)
    _refuse(arguments, _DETECT, "detectors", "a classifier")
    return of_classifier(model.to(pick_device(arguments.device)), arguments)


def _refuse(arguments: Namespace, options: Mapping[str, object], whose: str, task: str) -> None:
    """No option is passed over in silence."""
    for name, default in options.items():
        if arguments.get(name, default) != default:
            raise ValueError(f"{name.replace('_', '-')}: an option for {whose}; {arguments.run} holds {task}")
