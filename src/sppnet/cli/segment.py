"""`sppnet train segment`, and `sppnet evaluate` and `sppnet predict` for segmenters."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
from sppnet.cli.parser import CommandParser, numbers, optional, options_of
from sppnet.errors import check_choice, printable
from sppnet.segment.options import SegmentOptions, View

if TYPE_CHECKING:
    from sppnet.segment.evaluate import SegmentationScores
    from sppnet.segment.model import Segmenter

_WRITE = "palette,overlay"


def train_parser() -> CommandParser:
    """Build the argument parser of `sppnet train segment`."""
    parser = CommandParser(
        "train segment",
        "Train a network for semantic segmentation: DeepLab v3+, v3, v2 or PSPNet. Ctrl-C stops after the current step"
        " and loses no progress; --resume continues.",
    )
    option, options = parser.option, SegmentOptions()
    option("data", "data", "images and masks: VOC, CVAT, CamVid, Roboflow, or folders images and masks")
    add_format(parser)
    option("data", "--split", "split to train on; default: train, if there are splits", type=str | None)
    text = (
        "validation images: a split of DATA, or other data (of splits its val, else test), or none; default: the split"
        " val of DATA, else a tenth of the training images, chosen by --seed"
    )
    option("data", "--val", text, type=str | None, metavar="DATA")
    text = "class file: names, CSV with name and id or r,g,b, or CVAT's labelmap.txt; default: that of the data set"
    option("data", "--classes", text, type=str | None, metavar="FILE")
    text = "mask ids to ignore; default: 255 and those of the layout"
    parser.fields("data", options, ignore=(text, optional(numbers(int, 0))))
    option("data", "--config", "YAML file with any of these options", action="config")
    parser.fields(
        "model",
        options,
        head="segmentation head",
        context="context module of deeplabv3plus",
        backbone="convolutional timm network",
        weights="weights: auto, hub (timm download), none, or a safetensors file",
        output_stride="stride of the last map: 8, 16 or 32 pixels",
        rates=("ASPP rates such as 6,12,18; default: auto, the papers' rates fitted to the crop", numbers(auto=())),
        width="channels of the head (papers: 256)",
        norm="normalization of the head; safe is batch norm for any batch size",
        separable="separable convolutions; default: only for deeplabv3plus",
        image_level="image-level branch of ASPP",
        dropout="dropout probability in the head",
    )
    add_stages(parser, options, "last stages of the backbone to train: a number, all, or 0 to train only the head")
    parser.fields(
        "training",
        options,
        crop=("height,width of the training crops in pixels", numbers()),
        scale_range=("smallest,largest scale factor before cropping", numbers(float, 0)),
        jitter="strength of brightness, contrast and saturation jitter",
        class_weights="class weights in the loss",
        epochs="number of epochs",
        batch="images per batch",
        seed="random seed",
        deterministic="make equal seeds give identical results on a GPU, or fail",
    )
    add_best_epoch(parser, options)
    add_optimization(parser, options)
    text = "output folder for the model, its metrics and its checkpoint"
    option("output", "--out", text, required=True, metavar="RUN")
    option("output", "--resume", "continue the training in RUN, if there is one", False, action="store_true")
    parser.fields("output", options, tensorboard="also write TensorBoard events to RUN")
    add_hardware(parser, options)
    return parser


def train(arguments: Namespace) -> int:
    """Train and return 0."""
    from sppnet.segment.train import train_segmenter

    training = train_segmenter(
        arguments.data,
        arguments.out,
        options_of(SegmentOptions, arguments),
        split=arguments.split,
        val=arguments.val,
        resume=arguments.resume,
        class_file=arguments.classes,
        format=arguments.format,
    )
    list_problems(training.problems, training.failures)
    if not training.finished:
        raise KeyboardInterrupt
    if training.scores:
        named = {"mean IoU": "miou", "pixel accuracy": "pixel_accuracy", "mean accuracy": "mean_accuracy"}
        line(", ".join(f"{name} {100 * training.scores[key]:.1f} %" for name, key in named.items()))
    line(f"{training.run} is ready after {training.seconds:.0f} s")
    return 0


def evaluate(model: "Segmenter", arguments: Namespace) -> int:
    """Score a segmenter and return 0, or 1 if an image or mask could not be used."""
    from sppnet.segment.evaluate import evaluate_segmenter, read_evaluation_data
    from sppnet.segment.pictures import write_mosaic
    from sppnet.segment.report import write_report
    from sppnet.segment.views import segment_image

    view = _view(model, arguments)
    source = arguments.data, arguments.split, arguments.ignore, arguments.classes, arguments.format
    data = read_evaluation_data(model, *source)
    report = evaluate_segmenter(model, data, view=view)
    list_problems(report.problems, report.failures)
    if arguments.pictures:
        folder = Path(arguments.pictures)
        write_mosaic(report, data, lambda image: segment_image(model, image, view), folder, model.config.colours)
        message(f"best and worst images written to {folder}")
    if arguments.report:
        settings = {"run": arguments.run, "name": arguments.data, "colours": model.config.colours}
        write_report(report, data, lambda image: segment_image(model, image, view), Path(arguments.report), **settings)
        message(f"report written to {arguments.report}")
    if arguments.json:
        sys.stdout.write(json.dumps(report.to_dict()) + "\n")
    else:
        results.print(scores_table(report.scores))
        if report.ece is not None:
            line(f"calibration error {report.ece:.3f}")
    return 1 if report.failures else 0


def predict(model: "Segmenter", arguments: Namespace) -> int:
    """Segment images, print one line each, and return 0, or 1 if an image could not be read."""
    from sppnet.data.images import MAX_PIXELS
    from sppnet.inference.results import Failure
    from sppnet.segment.predict import OUTPUTS, output_stems, segment_files

    view = _view(model, arguments)
    folder, write = Path(arguments.out) if arguments.out else None, arguments.write.split(",")
    limit = MAX_PIXELS if arguments.max_image_pixels is None else arguments.max_image_pixels
    if limit < 1:
        raise ValueError(f"max_image_pixels: expected at least 1, got {limit}")
    if folder is None and arguments.write != _WRITE:
        raise ValueError(f"write: expected a folder for {arguments.write}, got none; set --out")
    for output in write:
        check_choice("write", output, OUTPUTS)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    paths, failures = find_images(arguments.images)
    stems = output_stems(paths, folder) if folder else [None] * len(paths)
    if arguments.csv:
        print_row("path", "label", "share")
    for path, outcome in zip(paths, segment_files(model, paths, stems, write, view, limit), strict=True):
        if isinstance(outcome, Failure):
            failures.append(outcome.error)
            continue
        result, files = outcome
        if arguments.json:
            sys.stdout.write(json.dumps(result.to_dict() | ({"files": files} if files else {})) + "\n")
        elif arguments.csv:
            for name, share in result.shares.items():
                print_row(path, name, f"{share:.6f}")
        else:
            shares = [f"{name} {100 * share:.1f} %" for name, share in result.shares.items() if share >= 0.0005]
            sys.stdout.write(f"{printable(str(path))}\t{printable(', '.join(shares))}\n")
    list_failures(failures)
    return 1 if failures else 0


def scores_table(scores: "SegmentationScores") -> Table:
    """Tabulate IoU per class, mean IoU and pixel accuracy, in percent."""
    table = Table("class", "IoU %", "pixels %")
    total = max(sum(scores.pixels.values()), 1)
    for name, value in scores.per_class.items():
        iou = "-" if value is None else f"{100 * value:.1f}"
        table.add_row(escape(name), iou, f"{100 * scores.pixels[name] / total:.1f}")
    table.add_section()
    table.add_row("mean IoU", f"{100 * scores.miou:.1f}", "")
    table.add_row("pixel accuracy", f"{100 * scores.pixel_accuracy:.1f}", "")
    return table


def _view(model: "Segmenter", arguments: Namespace) -> View:
    from sppnet.inference.memory import format_bytes, parse_memory, settled_bytes
    from sppnet.segment.views import check_view

    memory = arguments.memory = parse_memory(arguments.memory)
    if (in_use := settled_bytes()) > memory:
        got = f"got {format_bytes(memory)}, but the process already uses {format_bytes(in_use)}"
        raise ValueError(f"memory: expected enough for the model and an image, {got}")
    view = options_of(View, arguments)
    check_view(model, view)
    return view
