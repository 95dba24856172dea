"""`sppnet train detect`, and `sppnet evaluate` and `sppnet predict` for detectors."""

import dataclasses
import json
import sys
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from jsonargparse import Namespace
from rich.markup import escape
from rich.table import Table

from sppnet.cli.common import (
    add_best_epoch,
    add_format,
    add_hardware,
    add_optimization,
    add_stages,
    find_images,
    list_failures,
    list_problems,
    print_row,
)
from sppnet.cli.console import line, message, results
from sppnet.cli.parser import CommandParser, levels, numbers, options_of
from sppnet.detect.options import DetectOptions
from sppnet.detect.two_stage.options import TwoStageOptions
from sppnet.errors import printable

if TYPE_CHECKING:
    from sppnet.detect.evaluate import DetectionReport
    from sppnet.detect.model import AnyDetector

_METHODS = Literal["two-stage", "spp", "rcnn", "fast"]
PROPOSALS = "selective-search[-fast|-quality], grid, or a comma-separated list of these, or a box file"


def train_parser() -> CommandParser:
    """Build the argument parser of `sppnet train detect`."""
    parser = CommandParser(
        "train detect",
        "Train a detector on images with boxes. The default method learns its proposals and a head on the maps of a"
        " frozen network; the methods of the papers score the windows of selective search: SPP-net (one network pass"
        " per image), R-CNN (one pass per window) and Fast R-CNN (trains the network too). Ctrl-C loses no progress;"
        " --resume continues.",
    )
    option, two_stage, classic = parser.option, TwoStageOptions(), DetectOptions()
    both = (two_stage, classic)
    option("data", "data", "data set in the format of VOC, COCO or YOLO")
    add_format(parser)
    option("data", "--config", "YAML file with any of these options", action="config")
    text = "split to train on; default: train, or all images without splits"
    option("data", "--split", text, type=str | None)
    text = (
        "images to score the trained detector on: a split of DATA, or other data (of splits its val, else test), or"
        " none; default: the split val of DATA, else a tenth of the training images, chosen by --seed"
    )
    option("data", "--val", text, type=str | None, metavar="DATA")
    choices = f"{{{','.join(get_args(_METHODS))}}}"
    option("model", "--method", "kind of detector", "two-stage", type=_METHODS, metavar=choices)
    add_network(parser, both)
    parser.fields(
        "two-stage",
        both,
        side="shorter side to which images are resized, in pixels",
        max_side="longest side of resized images",
        dropout="dropout of the region head",
        cache_limit="largest size of the cache in GB",
    )
    title = "spp, rcnn, fast"
    add_windows(parser, title, both, "shorter sides of the images in pixels, such as 480,576,688,864,1200")
    parser.fields(
        title,
        both,
        proposal_seconds="soft time limit of the search per image; default: none",
        cell_rule="mapping of boxes to cells",
        scale_rule="choice of scale per box",
        reduce="pooling within a bin",
        scorer="scores by SVMs, or by the softmax of the fine-tuned layers",
        regression="refine boxes by regression",
        finetune="train fc6 and fc7; false keeps their random weights",
        mirror="also fine-tune on mirrored images",
        steps="batches per epoch of fine-tuning",
    )
    text = "last stages of the backbone to train: a number, all, or 0; default: 0, or what the method trains"
    add_stages(parser, both, text)
    parser.fields(
        "training",
        both,
        epochs="number of epochs",
        batch="images per batch, or windows of the other methods",
        seed="random seed",
        deterministic="make equal seeds give identical results on a GPU, or fail",
    )
    add_best_epoch(parser, two_stage)
    add_optimization(parser, both)
    text = "output folder for the model and its checkpoint"
    option("output", "--out", text, required=True, metavar="RUN")
    option("output", "--resume", "continue the training in RUN, if there is one", False, action="store_true")
    parser.fields(
        "output",
        both,
        cache="cache of feature maps or proposals, shareable; default: the folder cache in RUN",
        tensorboard="also write TensorBoard events to RUN",
    )
    add_hardware(parser, both, "number of images read, or searched for proposals, in parallel by each process")
    return parser


def add_network(parser: CommandParser, options: Any) -> None:
    """Add the options of the network that `train detect` and `compare detectors` share."""
    parser.fields(
        "model",
        options,
        backbone="timm network, or zf5, convnet5, overfeat5, overfeat7",
        weights="weights: auto, hub (timm download), none, or a safetensors file",
        levels=("pyramid levels", levels),
        windows="largest number of proposals per image",
    )


def add_windows(parser: CommandParser, title: str, options: Any, scales: str) -> None:
    """Add options of window-based detectors that `compare detectors` has too; `scales` is a help text."""
    parser.fields(
        title,
        options,
        stage="feature map, 0 is the finest; default: the last map of stride 16",
        scales=(scales, numbers()),
        hidden=("sizes of fc6 and fc7 (paper: 4096,4096), or none to omit both layers", numbers(none=())),
        proposals=PROPOSALS,
    )


def _options(arguments: Namespace) -> "DetectOptions | TwoStageOptions":
    """Return the options of the method; options of other methods are an error."""
    kinds = (TwoStageOptions, DetectOptions) if arguments.method == "two-stage" else (DetectOptions, TwoStageOptions)
    own, other = ({field.name for field in dataclasses.fields(kind)} for kind in kinds)
    for name in other - own:
        if arguments.get(name) is not None:
            raise ValueError(
                f"{name}: expected no value for the method {arguments.method!r}, got {arguments[name]!r}; omit"
                f" --{name.replace('_', '-')}"
            )
    return options_of(kinds[0], arguments)  # type: ignore[return-value]


def train(arguments: Namespace) -> int:
    """Train and return 0."""
    from sppnet.detect.train import train_detector

    training = train_detector(
        arguments.data,
        arguments.out,
        _options(arguments),
        split=arguments.split,
        val=arguments.val,
        resume=arguments.resume,
        format=arguments.format,
    )
    list_problems(training.problems, training.failures)
    if not training.finished:
        raise KeyboardInterrupt
    table = Table("part", "seconds")
    for name, seconds in training.stages.items():
        table.add_row(name, f"{seconds:.1f}")
    results.print(table)
    if training.scores:
        line(f"AP50 {100 * training.scores['ap50']:.1f} %, AP50:95 {100 * training.scores['map']:.1f} %")
    line(f"{training.run} is ready after {training.seconds:.0f} s")
    return 0


def prediction_options(model: "AnyDetector", arguments: Namespace, cache: Path | None) -> dict[str, Any]:
    """Return the keyword arguments of the model's `predict`; options of the other kind of detector are an error.

    Args:
        model: detector.
        arguments: arguments of `evaluate` or `predict`.
        cache: default folder of cached proposals.
    """
    from sppnet.detect.model import Detector
    from sppnet.detect.two_stage.tiles import Tiling

    others: dict[str, Any] = {"tile": None, "overlap": None, "vectors": None}
    if not isinstance(model, Detector):
        others = {"proposals": None, "workers": 2, "cache": None, "svd": None, "head_dtype": "float32"}
    for name, default in others.items():
        if arguments.get(name, default) != default:
            kind = "two-stage detector" if isinstance(model, Detector) else "detector of the method spp, rcnn or fast"
            raise ValueError(
                f"{name}: expected a {kind}, got a detector of the method {model.config.method} in {arguments.run};"
                f" omit --{name.replace('_', '-')}"
            )
    if isinstance(model, Detector):
        folder = Path(arguments.cache) if arguments.cache else cache
        search = {"cache": folder / "proposals" if folder else None, "workers": arguments.workers}
        return search | {"proposals": arguments.proposals}
    if arguments.overlap is not None and arguments.tile is None:
        raise ValueError(f"overlap: expected --tile with it, got {arguments.overlap} alone; add --tile")
    return {"tiling": Tiling(arguments.tile, arguments.overlap) if arguments.tile is not None else None}


def evaluate(model: "AnyDetector", arguments: Namespace) -> int:
    """Score a detector and return 0, or 1 if an image could not be read."""
    from sppnet.detect.classic.compress import compress
    from sppnet.detect.evaluate import evaluate_detector
    from sppnet.detect.model import Detector
    from sppnet.detect.pictures import write_mosaic
    from sppnet.detect.report import write_report
    from sppnet.evaluation.curves import write_curves

    folder = Path(arguments.pictures) if arguments.pictures else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    settings = prediction_options(model, arguments, Path(arguments.run) / "cache")
    settings |= {"split": arguments.split, "format": arguments.format}
    exact = None
    if isinstance(model, Detector) and (arguments.svd or arguments.head_dtype != "float32"):
        exact = evaluate_detector(model, arguments.data, **settings).scores
        model = compress(model, arguments.svd or (), arguments.head_dtype)
    report = evaluate_detector(model, arguments.data, **settings)
    list_problems(report.problems, report.failures)
    if folder:
        write_curves(report.scores, folder)
        write_mosaic(report.found, report.samples, list(report.scores.per_class), folder)
        message(f"curves and mosaics written to {folder}")
    if arguments.report:
        write_report(report, Path(arguments.report), run=arguments.run, data=arguments.data)
        message(f"report written to {arguments.report}")
    if arguments.json:
        content = report.to_dict()
        if exact:
            content |= {"exact": {"ap50": exact.ap50, "map": exact.map}, "loss_ap50": exact.ap50 - report.scores.ap50}
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        _print_scores(report)
        if exact:
            loss = 100 * (exact.ap50 - report.scores.ap50)
            line(f"AP50 of the exact layers: {100 * exact.ap50:.1f}; loss due to --svd and --head-dtype: {loss:.2f}")
    return 1 if report.failures else 0


def predict(model: "AnyDetector", arguments: Namespace) -> int:
    """Detect objects, draw or write them and print them per image, and return 0, or 1 if an image could not be read."""
    from sppnet.data.images import load_image
    from sppnet.detect.classic.compress import compress
    from sppnet.detect.model import Detector
    from sppnet.detect.writers import check_folder, write_predictions
    from sppnet.inference.results import Failure

    folder = Path(arguments.out) if arguments.out else None
    if arguments.format:
        if folder is None:
            raise ValueError("out: expected a folder with --format, got none; set --out DIR")
        check_folder(folder, arguments.format)
    paths, failures = find_images(arguments.images)
    settings = prediction_options(model, arguments, None)
    if isinstance(model, Detector):
        model = compress(model, arguments.svd or (), arguments.head_dtype)
    else:
        settings["vectors"] = arguments.vectors is not None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    results = model.iter_predictions(paths, min_score=arguments.min_score, on_error="skip", **settings)
    taken = {path.resolve() for path in paths}  # no picture replaces an image
    if folder and folder.resolve() in {path.parent for path in taken}:
        taken |= {path.resolve() for path in folder.iterdir()}
    written = []
    if arguments.csv:
        print_row("path", "label", "score", "x1", "y1", "x2", "y2")
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, Failure):
            failures.append(result.error)
            continue
        content = result.to_dict()
        if result.vectors is not None:
            file = _free_path(Path(arguments.vectors) / path.stem, taken, ".safetensors")
            content["vectors"] = str(file)
            _save_vectors(result, file)
        if arguments.format:
            written.append(result)
        elif folder:
            picture = _free_path(folder / path.stem, taken)
            result.draw(load_image(path)).save(picture, quality=90)
            content["files"] = {"picture": str(picture)}
        if arguments.json:
            sys.stdout.write(json.dumps(content) + "\n")
        else:
            for detected in content["objects"]:
                label, score, box = detected["label"], detected["score"], detected["box"]
                if arguments.csv:
                    print_row(path, label, f"{score:.6f}", *(f"{edge:.3f}" for edge in box))
                else:
                    edges = " ".join(f"{edge:.1f}" for edge in box)
                    sys.stdout.write(f"{printable(str(path))}\t{printable(label)}\t{score:.3f}\t{edges}\n")
    if folder and arguments.format:
        write_predictions(written, folder, arguments.format, model.config.classes)
        message(f"predictions written to {folder}")
    list_failures(failures)
    return 1 if failures else 0


def _save_vectors(result: Any, file: Path) -> None:
    """Write the vectors of the objects of an image with their boxes, scores and class indices."""
    from sppnet.io.files import save_tensors

    found = result.detections
    tensors = {"vectors": result.vectors, "boxes": found.boxes, "scores": found.scores, "labels": found.labels}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, file, {"source": result.source, "classes": json.dumps(result.classes)})


def _free_path(stem: Path, taken: set[Path], extension: str = ".jpg") -> Path:
    """Return STEM with the extension, or STEM-2, ..., whichever is not in `taken`, to which it is added."""
    names = (f"{stem.name}{suffix}{extension}" for suffix in chain([""], (f"-{number}" for number in count(2))))
    path = next(path for name in names if (path := stem.with_name(name)).resolve() not in taken)
    taken.add(path.resolve())
    return path


def _print_scores(report: "DetectionReport") -> None:
    table = Table("class", "objects", "AP50", "AP50, 11 points", "AP50:95")
    scores = report.scores
    for name, part in scores.per_class.items():
        table.add_row(escape(name), str(part.objects), *map(_percent, (part.ap50, part.voc07, part.ap)))
    table.add_row("mean", "", *map(_percent, (scores.ap50, scores.voc07, scores.map)))
    results.print(table)
    shares = ", ".join(map(_percent, report.recall.fractions))
    if report.ece is not None:
        line(f"calibration error {report.ece:.3f}")
    line(f"{shares} % of the objects have a proposal with IoU of at least 0.5, 0.7, 0.9")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
