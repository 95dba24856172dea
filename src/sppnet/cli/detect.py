"""`sppnet train detect`, and `sppnet evaluate` and `sppnet predict` for detectors."""

import dataclasses
import json
import sys
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace
from rich.markup import escape
from rich.table import Table

from sppnet.cli.common import add_format, add_optimization, add_stages, find_images, list_failures, list_problems
from sppnet.cli.console import line, message, results
from sppnet.cli.parser import CommandParser, levels, numbers, options_of
from sppnet.detect.options import DetectOptions

if TYPE_CHECKING:
    from sppnet.detect.evaluate import DetectionReport
    from sppnet.detect.model import Detector

PROPOSALS = "selective-search[-fast|-quality], grid, or a comma-separated list of these, or a box file"


def train_parser() -> CommandParser:
    """Build the argument parser of `sppnet train detect`."""
    parser = CommandParser(
        "train detect",
        "Train a detector on images with boxes: SPP-net (one network pass per image), R-CNN (one pass per window) or"
        " Fast R-CNN (trains the backbone too). Ctrl-C loses no progress; --resume continues.",
    )
    option, options = parser.option, DetectOptions()
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
    parser.fields(
        "data",
        options,
        proposals=PROPOSALS,
        windows="largest number of windows per image",
        proposal_seconds="soft time limit of the search per image; default: none",
    )
    add_network(parser, options, "shorter sides of the images in pixels, such as 480,576,688,864,1200")
    parser.fields(
        "model",
        options,
        method="spp (SPP-net), rcnn (R-CNN) or fast (Fast R-CNN, with the single level 7)",
        cell_rule="mapping of boxes to cells",
        scale_rule="choice of scale per box",
        reduce="pooling within a bin",
        scorer="scores by SVMs, or by the softmax of the fine-tuned layers",
        regression="refine boxes by regression",
    )
    add_stages(parser, options, "stages of the backbone to train: auto, or what the method trains, 0 or all")
    parser.fields(
        "training",
        options,
        finetune="train fc6 and fc7; false keeps their random weights",
        mirror="also fine-tune on mirrored images",
        epochs="epochs, each of --steps batches, or of all images for fast",
        steps="batches per epoch of fine-tuning",
        batch="windows per batch, a quarter of them on objects",
        seed="random seed",
        deterministic="make equal seeds give identical results on a GPU, or fail",
    )
    add_optimization(parser, options)
    text = "output folder for the model and its checkpoint"
    option("output", "--out", text, required=True, metavar="RUN")
    option("output", "--resume", "continue the training in RUN, if there is one", False, action="store_true")
    parser.fields(
        "output",
        options,
        cache="cache of proposals and features, shareable; default: the folder cache in RUN",
        tensorboard="also write TensorBoard events to RUN",
    )
    parser.fields("hardware", options, device="device", workers="number of images searched for proposals in parallel")
    return parser


def add_network(parser: CommandParser, options: DetectOptions, scales: str) -> None:
    """Add the options of the network that `train detect` and `compare detectors` share; `scales` is a help text."""
    parser.fields(
        "model",
        options,
        backbone="timm network, or zf5, convnet5, overfeat5, overfeat7",
        stage="feature map, 0 is the finest; default: the last map of stride 16",
        weights="weights: auto, hub (timm download), none, or a safetensors file",
        levels=("pyramid levels", levels),
        scales=(scales, numbers()),
        hidden=("sizes of fc6 and fc7 (paper: 4096,4096), or none to omit both layers", numbers(none=())),
    )


def train(arguments: Namespace) -> int:
    """Train and return 0."""
    from sppnet.detect.train import train_detector

    training = train_detector(
        arguments.data,
        arguments.out,
        options_of(DetectOptions, arguments),
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


def evaluate(model: "Detector", arguments: Namespace) -> int:
    """Score a detector and return 0, or 1 if an image could not be read."""
    from sppnet.detect.classic.compress import compress
    from sppnet.detect.evaluate import evaluate_detector
    from sppnet.detect.pictures import write_mosaic
    from sppnet.detect.report import write_report
    from sppnet.evaluation.curves import write_curves

    folder = Path(arguments.pictures) if arguments.pictures else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.proposals:
        model.config = dataclasses.replace(model.config, proposals=arguments.proposals)
    cache = Path(arguments.cache or Path(arguments.run) / "cache") / "proposals"
    score = partial(
        evaluate_detector,
        data=arguments.data,
        split=arguments.split,
        cache=cache,
        workers=arguments.workers,
        format=arguments.format,
    )
    exact = None
    if arguments.svd or arguments.head_dtype != "float32":
        exact = score(model).scores
        model = compress(model, arguments.svd or (), arguments.head_dtype)
    report = score(model)
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


def predict(model: "Detector", arguments: Namespace) -> int:
    """Detect objects, draw or write them and print them per image, and return 0, or 1 if an image could not be read."""
    from sppnet.data.images import load_image
    from sppnet.detect.classic.compress import compress
    from sppnet.detect.writers import check_folder, write_predictions
    from sppnet.inference.results import Failure

    folder = Path(arguments.out) if arguments.out else None
    if arguments.format:
        if folder is None:
            raise ValueError("out: expected a folder with --format, got none; set --out DIR")
        check_folder(folder, arguments.format)
    paths, failures = find_images(arguments.images)
    model = compress(model, arguments.svd or (), arguments.head_dtype)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    cache = Path(arguments.cache) / "proposals" if arguments.cache else None
    proposals = model.propose(paths, arguments.proposals, cache=cache, workers=arguments.workers)
    results = model.detect_among(paths, proposals, min_score=arguments.min_score, on_error="skip")
    taken = {path.resolve() for path in paths}  # no picture replaces an image
    if folder and folder.resolve() in {path.parent for path in taken}:
        taken |= {path.resolve() for path in folder.iterdir()}
    written = []
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, Failure):
            failures.append(result.error)
            continue
        content = result.to_dict()
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
                box = " ".join(f"{edge:.1f}" for edge in detected["box"])
                sys.stdout.write(f"{path}\t{detected['label']}\t{detected['score']:.3f}\t{box}\n")
    if folder and arguments.format:
        write_predictions(written, folder, arguments.format, model.config.classes)
        message(f"predictions written to {folder}")
    list_failures(failures)
    return 1 if failures else 0


def _free_path(stem: Path, taken: set[Path]) -> Path:
    """Return the path STEM.jpg, or STEM-2.jpg, ... if it is taken, and add it to `taken`, which has resolved paths."""
    names = (f"{stem.name}{suffix}.jpg" for suffix in chain([""], (f"-{number}" for number in count(2))))
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
