"""`sppnet evaluate` and `sppnet predict`: score a run on annotated images or apply it to new ones."""

from importlib import import_module
from typing import Any, Literal

from jsonargparse import Namespace

from sppnet.cli import engine
from sppnet.cli.common import add_format, add_images, read_names
from sppnet.cli.parser import CommandParser, numbers
from sppnet.data.resize import POLICIES

_POLICIES = f"{', '.join(POLICIES)}, with an optional side as in shorter-side:256"
_PROPOSALS = "selective-search[-fast|-quality], grid, a list of these, or a box file; default: as in training"
_CLASSES = "class file, one name per line, or CSV with name and id or r,g,b; default: the file of the data set or run"
# Options of single tasks: the tasks that have the option, and its default.
_TASK_OPTIONS: dict[str, tuple[tuple[str, ...], Any]] = {
    "resize": (("classify",), None),
    "compare": (("classify",), None),
    "unknown": (("classify",), False),
    "views": (("classify",), "full"),
    "batch": (("classify",), 32),
    "top": (("classify",), 5),
    "pictures": (("detect", "segment"), None),
    "cache": (("detect",), None),
    "min_score": (("detect",), None),
    "proposals": (("detect",), None),
    "workers": (("detect",), 2),
    "svd": (("detect",), None),
    "head_dtype": (("detect",), "float32"),
    "format": (("detect",), None),
    "vectors": (("detect",), None),
    "ignore": (("segment",), None),
    "classes": (("segment",), None),
    "write": (("segment",), "palette,overlay"),
    "scale_factors": (("segment",), (1.0,)),
    "flip": (("segment",), False),
    "memory": (("segment",), "4GB"),
    "tile": (("detect", "segment"), None),
    "overlap": (("detect", "segment"), None),
    "global_context": (("segment",), False),
    "max_image_pixels": (("segment",), None),
}
NOUNS = {"classify": "classifier", "detect": "detector", "segment": "segmenter", "features": "region encoder"}


def evaluate_parser() -> CommandParser:
    """Build the argument parser of `sppnet evaluate`."""
    parser = CommandParser("evaluate", "Score a model on labeled images, images with boxes or images with masks.")
    _add_run(parser)
    parser.option("data", "data", "data set as for training: images in class folders, with boxes, or with masks")
    add_format(parser)
    parser.option("data", "--split", "split to score; default: test, or val if there is no test", type=str | None)
    parser.option("output", "--json", "print JSON and nothing else on standard output", False, action="store_true")
    text = "detectors, segmenters: output folder of the best and worst images, and of a detector's curves"
    parser.option("output", "--pictures", text, type=str | None, metavar="DIR")
    text = "output folder of a report: report.html, report.json, and images.csv with a row per image"
    parser.option("output", "--report", text, type=str | None, metavar="DIR")
    _add_classifier_options(parser)
    text = f"resize policies to compare: {', '.join(POLICIES)}, or shorter sides such as 160,224,320"
    parser.option("classifiers", "--compare", text, type=str | None, metavar="POLICIES")
    _add_detector_options(parser)
    _add_segmenter_options(parser)
    text = "mask ids to ignore; default: as in training"
    parser.option("segmenters", "--ignore", text, type=numbers(int, 0), metavar="IDS")
    parser.option("segmenters", "--classes", _CLASSES, type=str | None, metavar="FILE")
    return parser


def predict_parser() -> CommandParser:
    """Build the argument parser of `sppnet predict`."""
    parser = CommandParser("predict", "Classify images, detect objects in them or segment them, each at its own size.")
    _add_run(parser)
    add_images(parser, "image files or folders")
    parser.option("output", "--json", "print one JSON object per image and nothing else", False, action="store_true")
    text = "print CSV and nothing else: a row per image, per object of detectors, or per class of segmenters"
    parser.option("output", "--csv", text, False, action="store_true")
    text = (
        "output folder: links to the images by class, and predictions.csv, of classifiers; pictures or --format of"
        " detectors; masks of segmenters; or all results with --engine ray"
    )
    parser.option("output", "--out", text, type=str | None, metavar="DIR")
    _add_classifier_options(parser)
    text = "number of classes per image in JSON and CSV"
    parser.option("classifiers", "--top", text, _TASK_OPTIONS["top"][1], type=int, metavar="N")
    text = "images per batch; does not change the results"
    parser.option("classifiers", "--batch", text, _TASK_OPTIONS["batch"][1], type=int)
    text = "report images whose score is below the threshold of the run as unknown"
    parser.option("classifiers", "--unknown", text, False, action="store_true")
    _add_detector_options(parser)
    text = "lowest score to report; default: that of the run with the best F1, else -0.5 for SVMs and 0.5 for a softmax"
    parser.option("detectors", "--min-score", text, type=float | None, metavar="SCORE")
    text = "folder for the pyramid vectors of the detected objects: a safetensors file per image (two-stage only)"
    parser.option("detectors", "--vectors", text, type=str | None, metavar="DIR")
    text = "files to write to --out instead of pictures, in the format coco, yolo, csv or voc; default: none"
    kind = Literal["coco", "yolo", "csv", "voc"] | None
    parser.option("detectors", "--format", text, type=kind, metavar="NAME")
    _add_segmenter_options(parser)
    text = "files to write: palette, overlay, probabilities"
    parser.option("segmenters", "--write", text, _TASK_OPTIONS["write"][1], metavar="FILES")
    text = "refuse images with more pixels; default: 178,956,970"
    parser.option("segmenters", "--max-image-pixels", text, type=int | None, metavar="PIXELS")
    engine.add_engine_options(parser)
    text = "images per output file of --engine ray"
    parser.option("hardware", "--shard", text, engine.SHARD, type=int, metavar="IMAGES")
    return parser


def _add_run(parser: CommandParser) -> None:
    parser.option("model", "run", "run folder, or imagenet for the embedded network")
    parser.option("hardware", "--device", "device: auto, cpu, cuda or mps", "auto")


def _add_classifier_options(parser: CommandParser) -> None:
    text = f"resize policy: {_POLICIES}; default: the policy of the run"
    parser.option("classifiers", "--resize", text, type=str | None, metavar="POLICY")
    parser.option("classifiers", "--views", "views to average per image: full, 10, 18, 96 or 96+2", "full")


def _add_detector_options(parser: CommandParser) -> None:
    def add(name: str, text: str, **settings: Any) -> None:
        default = _TASK_OPTIONS[name.removeprefix("--").replace("-", "_")][1]
        parser.option("detectors", name, text, default, **settings)

    add("--proposals", _PROPOSALS, type=str | None)
    add("--workers", "number of images searched for proposals in parallel", type=int)
    text = "cache of proposals; default: the folder cache in RUN for evaluate, none for predict"
    add("--cache", text, type=str | None, metavar="DIR")
    add("--svd", "ranks to which fc6 and fc7 are compressed, such as 256,128", type=numbers(), metavar="RANKS")
    add("--head-dtype", "dtype of the layers after the pyramid: float32 or bfloat16", metavar="DTYPE")


def _add_segmenter_options(parser: CommandParser) -> None:
    def add(name: str, text: str, **settings: Any) -> None:
        default = _TASK_OPTIONS[name.removeprefix("--").replace("-", "_")][1]
        parser.option("segmenters", name, text, default, **settings)

    title = "detectors and segmenters"
    text = (
        "side of the tiles in which images are processed, in pixels; default: whole images for a two-stage detector, as"
        " large as --memory allows for a segmenter"
    )
    parser.option(title, "--tile", text, type=int | None)
    text = "smallest overlap of neighboring tiles in pixels; default: a quarter of a tile for detectors, else 64"
    parser.option(title, "--overlap", text, type=int | None)
    text = "average over these scale factors, such as 0.75,1,1.25"
    add("--scale-factors", text, type=numbers(float, 0), metavar="FACTORS")
    add("--flip", "also average over mirrored images", action="store_true")
    add("--memory", "memory limit; images that need more are processed in tiles")
    text = "compute ASPP's image-level branch from a reduced copy of the whole image, not from each tile"
    add("--global-context", text, action="store_true")


def evaluate(arguments: Namespace) -> int:
    """Score a run and return the exit code."""
    return _run_task("evaluate", arguments)


def predict(arguments: Namespace) -> int:
    """Predict for images and return the exit code."""
    if arguments.json and arguments.csv:
        raise ValueError("csv: expected no value with --json, got both; choose one")
    for name in ("format", "csv"):
        if arguments[name] and arguments.engine == "ray":
            raise ValueError(f"{name}: expected no value with --engine ray, got {arguments[name]}")
    arguments.images = read_names(arguments)
    if arguments.engine == "ray":
        return engine.predict(arguments, check_task_options)
    engine.check_engine_options(arguments)
    return _run_task("predict", arguments)


def _run_task(command: str, arguments: Namespace) -> int:
    from sppnet.devices import pick_device
    from sppnet.registry import load

    model: Any = load(arguments.run)
    task = model.config.task
    check_task_options(arguments, task)
    code: int = getattr(import_module(f"sppnet.cli.{task}"), command)(
        model.to(pick_device(arguments.device)), arguments
    )
    return code


def check_task_options(arguments: Namespace, task: str) -> None:
    """Check that all options given belong to the task of the run.

    Raises:
        ValueError: an option of another task, or a task without predictions.
    """
    if task == "features":
        raise ValueError(
            f"run: expected a classifier, detector or segmenter, got a region encoder in {arguments.run}; use"
            " `sppnet features` to compute the vectors of boxes"
        )
    for name, (tasks, default) in _TASK_OPTIONS.items():
        data_format = name == "format" and "data" in arguments  # of evaluate
        if task not in tasks and not data_format and arguments.get(name, default) != default:
            option, expected = name.replace("_", "-"), " or ".join(NOUNS[other] for other in tasks)
            raise ValueError(
                f"{option}: expected a {expected}, got a {NOUNS[task]} in {arguments.run}; omit --{option}"
            )
