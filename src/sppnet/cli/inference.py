"""`sppnet evaluate` and `sppnet predict`: score a run on annotated images or apply it to new ones."""

from collections.abc import Callable
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from sppnet.classify.model import Classifier
from sppnet.classify.views import Views
from sppnet.cli import classify, detect, engine, segment
from sppnet.data.images import MAX_PIXELS
from sppnet.detect.model import Detector
from sppnet.devices import pick_device
from sppnet.inference.tiles import OVERLAP
from sppnet.registry import load
from sppnet.segment.model import Segmenter

_RESIZE = f"classifiers: {classify.RESIZE}; default: the policy of the run"
_VIEWS = f"classifiers: views to average for each image: {', '.join(get_args(Views))}"
_MIN_SCORE = "detectors: lowest score to report, from -1.5 (SVM) or 0.01 (softmax); default: -0.5 or 0.5"
_CACHE = "detectors: folder that caches proposals; default: the folder cache in RUN for evaluate, no cache for predict"
_PICTURES = "detectors and segmenters: output folder for the best and worst images, and for curves of detectors"
_CONTEXT = "segmenters: compute ASPP's image-level branch from a reduced copy of the whole image, not from each tile"
_OUT = "detectors and segmenters: output folder for pictures and labels; --engine ray: output folder for all results"
# Task-specific options: the tasks that support the option, and its default.
_TASK_OPTIONS: dict[str, tuple[tuple[type, ...], Any]] = {
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
    """Build the argument parser of `sppnet evaluate`."""
    parser = ArgumentParser(description="Score a model on labeled images, images with boxes or images with masks.")
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network")
    add("data", help="data as for training: class folders or CSV, VOC or COCO boxes, or images and masks")
    add("--split", type=str | None, help="split to score; default: test, or val if there is no test")
    add("--resize", type=str | None, metavar="POLICY", help=_RESIZE)
    add("--compare", type=str | None, metavar="POLICIES", help="classifiers: policies to compare, such as warp,native")
    add("--sizes", type=str | None, metavar="SIDES", help="classifiers: shorter sides to compare, such as 160,224,320")
    add("--views", type=str, default="full", help=_VIEWS)
    add("--pictures", type=str | None, metavar="DIR", help=_PICTURES)
    add("--ignore", type=str | None, metavar="IDS", help="segmenters: ids to ignore; default: as in training")
    add("--classes", type=str | None, metavar="FILE", help=f"segmenters: {segment.CLASSES}, else the run's")
    _add_detector_options(parser)
    _add_segmenter_options(parser)
    return parser


def predict_parser() -> ArgumentParser:
    """Build the argument parser of `sppnet predict`."""
    parser = ArgumentParser(
        description="Classify images, detect objects in them or segment them, each image at its own size."
    )
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network")
    add("images", nargs="+", help="image files or folders")
    add("--resize", type=str | None, metavar="POLICY", help=_RESIZE)
    add("--views", type=str, default="full", help=_VIEWS)
    add("--batch", type=int, default=32, help="classifiers: images read at a time; does not change the results")
    add("--out", type=str | None, metavar="DIR", help=_OUT)
    add("--min-score", type=float | None, help=_MIN_SCORE)
    add("--output", default=segment.OUTPUT, help="segmenters: files to write: palette, overlay, probabilities")
    add("--max-pixels", type=int, default=MAX_PIXELS, help="segmenters: largest accepted image area in pixels")
    engine.add_engine_options(parser)
    add("--shard", type=int, default=engine.SHARD, help="--engine ray: images per output file")
    _add_detector_options(parser)
    _add_segmenter_options(parser)
    return parser


def _add_detector_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--svd", type=str | None, metavar="RANKS", help="detectors: SVD ranks of fc6 and fc7, such as 256,128")
    add("--head", default="float32", help="detectors: dtype of the layers after the pyramid: float32 or bfloat16")
    add("--proposals", type=str | None, help=f"detectors: {detect.PROPOSALS}; default: as in training")
    add("--workers", type=int, default=2, help="detectors: number of images searched for proposals in parallel")
    add("--cache", type=str | None, metavar="DIR", help=_CACHE)


def _add_segmenter_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--scales", default="1", help="segmenters: average over these scale factors, such as 0.75,1,1.25")
    add("--flip", action="store_true", help="segmenters: also average over mirrored images")
    add("--memory", default="4GB", help="segmenters: memory limit; images that need more are processed in tiles")
    add("--tile", type=int | None, help="segmenters: side of the tiles in pixels; default: as large as --memory allows")
    add("--overlap", type=int, default=OVERLAP, help="segmenters: overlap of neighboring tiles in pixels")
    add("--global-context", action="store_true", help=_CONTEXT)
    add("--device", default="auto", help="device: auto, cpu, cuda or mps")
    add("--json", action="store_true", help="print JSON and nothing else on standard output")


def evaluate(arguments: Namespace) -> int:
    """Score a run and return the exit code."""
    return _run_task(arguments, {Classifier: classify.evaluate, Detector: detect.evaluate, Segmenter: segment.evaluate})


def predict(arguments: Namespace) -> int:
    """Predict for images and return the exit code."""
    if arguments.engine == "ray":
        return engine.predict(arguments, _check_task_options)
    engine.check_engine_options(arguments)
    return _run_task(arguments, {Classifier: classify.predict, Detector: detect.predict, Segmenter: segment.predict})


def _run_task(arguments: Namespace, commands: dict[type, Callable[[Any, Namespace], int]]) -> int:
    model = load(arguments.run)
    _check_task_options(arguments, type(model))
    return commands[type(model)](model.to(pick_device(arguments.device)), arguments)


def _check_task_options(arguments: Namespace, task: type) -> None:
    """Raise ValueError for an option that the task of the run does not support."""
    for name, (tasks, default) in _TASK_OPTIONS.items():
        ray_output = name == "out" and arguments.get("engine") == "ray"  # legal for every task
        if task not in tasks and not ray_output and arguments.get(name, default) != default:
            option, expected = name.replace("_", "-"), " or ".join(supported.__name__.lower() for supported in tasks)
            raise ValueError(
                f"{option}: expected a {expected}, got a {task.__name__.lower()} in {arguments.run}; omit --{option}"
            )
