"""`sppnet train segment`, and `sppnet evaluate` and `sppnet predict` for segmenters."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from jsonargparse import ArgumentParser, Namespace
from PIL import Image
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from sppnet.cli.common import find_images, list_problems, parse_numbers
from sppnet.console import console, results
from sppnet.errors import ImageError
from sppnet.inference.memory import parse_memory
from sppnet.layers.norms import Norm
from sppnet.segment.evaluate import SegmentationScores, evaluate_segmenter, json_content
from sppnet.segment.heads import Context, HeadName
from sppnet.segment.model import Segmenter
from sppnet.segment.options import ClassWeights, SegmentOptions
from sppnet.segment.pictures import write_mosaic
from sppnet.segment.predict import output_stems, segment_file
from sppnet.segment.views import View, segment_image

OUTPUT = "palette,overlay"
CLASSES = "class file: one name per line, or CSV with name and id or r,g,b; default: the file of the data set"


def train_parser() -> ArgumentParser:
    """Build the argument parser of `sppnet train segment`."""
    parser = ArgumentParser(
        description="Train a network for semantic segmentation: DeepLab v3+, v3, v2 or PSPNet. Ctrl-C loses no"
        " progress; --resume continues."
    )
    add, default = parser.add_argument, SegmentOptions()
    add("data", help="folders images and masks, VOC layout with SegmentationClass, or CamVid layout")
    add("--config", action="config", help="YAML file with any of these options")
    add("--out", required=True, metavar="RUN", help="output folder for the model and its checkpoint")
    add("--split", type=str | None, help="split to train on; default: train, or all images without splits")
    add("--val", type=str | None, metavar="DATA", help="validation images; default: the split val, if there is one")
    add("--classes", type=str | None, metavar="FILE", help=CLASSES)
    add("--ignore", type=str | None, metavar="IDS", help="mask ids to ignore; default: 255 and those of the layout")
    add("--resume", action="store_true", help="continue the training in RUN, if there is one")
    add("--head", type=HeadName, default=default.head, help=f"segmentation head: {', '.join(get_args(HeadName))}")
    add("--context", type=Context, default=default.context, help="context module of deeplabv3plus: aspp, ppm or none")
    add("--backbone", default=default.backbone, help="convolutional timm network")
    add("--weights", default=default.weights, help="weights: auto, hub (timm download), none, or a safetensors file")
    add("--output-stride", type=int, default=default.output_stride, help="stride of the last map: 8, 16 or 32 pixels")
    add("--rates", default="auto", help="ASPP rates such as 6,12,18; auto fits the rates of the papers to the crop")
    add("--width", type=int, default=default.width, help="channels of the head (papers: 256)")
    add("--norm", type=Norm, default=default.norm, help="safe (batch norm for any batch size), batch or group")
    add("--separable", type=bool | None, help="separable convolutions; default: only for deeplabv3plus")
    add("--image-level", type=bool, default=default.image_level, help="image-level branch of ASPP")
    add("--dropout", type=float, default=default.dropout, help="dropout probability in the head")
    add("--crop", default=",".join(map(str, default.crop)), help="height,width of the training crops in pixels")
    add("--scale", default=",".join(map(str, default.scale)), help="smallest,largest scale factor before cropping")
    add("--jitter", type=float, default=default.jitter, help="strength of brightness, contrast and saturation jitter")
    add("--class-weights", type=ClassWeights, default=default.class_weights, help="loss weights: none, root or median")
    add("--epochs", type=int, default=default.epochs, help="number of epochs")
    add("--batch", type=int, default=default.batch, help="images per batch, from 1")
    add("--optimizer", default=default.optimizer, help="optimizer: adamw or sgd")
    add("--lr", type=float | None, default=default.lr, help="peak learning rate")
    add("--weight-decay", type=float | None, help="weight decay; default: 5e-2 for adamw, 5e-4 for sgd")
    add("--schedule", default=default.schedule, help="learning rate schedule: poly, cosine or step")
    add("--precision", default=default.precision, help="precision: 32-true or bf16-mixed")
    add("--seed", type=int, default=default.seed, help="random seed")
    add("--workers", type=int, default=default.workers, help="number of processes that decode images")
    add("--deterministic", action="store_true", help="make equal seeds give identical results on a GPU, or fail")
    add("--device", default=default.device, help="device: auto, cpu, cuda or mps")
    add("--tensorboard", action="store_true", help="also write TensorBoard events to RUN")
    return parser


def train(arguments: Namespace) -> int:
    """Train and return 0, or 1 if interrupted."""
    from sppnet.segment.train import train_segmenter

    training = train_segmenter(
        arguments.data,
        arguments.out,
        options_of(arguments),
        split=arguments.split,
        val=arguments.val,
        class_file=arguments.classes,
        resume=arguments.resume,
    )
    list_problems(training.problems, training.failures)
    if not training.finished:
        console.print(f"stopped; run the same command with --resume to continue {training.run}", highlight=False)
        return 1
    if training.scores:
        results.print(scores_table(training.scores), f"after {training.seconds:.0f} s", highlight=False)
    results.print(f"{training.run} is ready", highlight=False, markup=False)
    return 0


def evaluate(model: Segmenter, arguments: Namespace) -> int:
    """Score a segmenter and return 0, or 1 if an image or mask could not be used."""
    from sppnet.data.formats.class_tables import ClassRow
    from sppnet.data.formats.segmentation import (
        choose_segmentation_split,
        read_segmentation,
    )

    split = choose_segmentation_split(arguments.data, arguments.split, "test", "val", "valid", "validation")
    ignore = parse_numbers("ignore", arguments.ignore, int, 0) if arguments.ignore else model.config.ignore or None
    table = [ClassRow(*row) for row in model.config.table]
    data = read_segmentation(
        arguments.data, split, model.config.classes, ignore, class_file=arguments.classes, table=table
    )
    view = view_of(model, arguments)

    def predict_labels(image: Image.Image) -> Tensor:
        return segment_image(model, image, view)

    evaluation = evaluate_segmenter(model, data, predict_labels)
    list_problems(data.problems, evaluation.failures)
    if arguments.pictures:
        write_mosaic(evaluation, data, predict_labels, Path(arguments.pictures), model.config.colours)
        console.print(f"best and worst images written to {arguments.pictures}", highlight=False, markup=False)
    if arguments.json:
        sys.stdout.write(json.dumps(json_content(evaluation)) + "\n")
    else:
        results.print(scores_table(evaluation.scores))
    return 1 if evaluation.failures else 0


def predict(model: Segmenter, arguments: Namespace) -> int:
    """Segment images, print one line each, and return 0, or 1 if an image could not be read."""
    view = view_of(model, arguments)
    outputs = tuple(arguments.output.split(","))
    paths, failures = find_images(arguments.images)
    folder = Path(arguments.out) if arguments.out else None
    if folder is None and arguments.output != OUTPUT:
        raise ValueError(f"output: expected a folder for {arguments.output}, got none; set --out")
    stems: Sequence[Path | None] = output_stems(paths, folder) if folder else [None] * len(paths)
    for path, stem in zip(paths, stems, strict=True):
        try:
            answer = segment_file(model, path, stem, outputs, view, arguments.max_pixels)
        except ImageError as error:
            failures.append(error)
            continue
        if arguments.json:
            sys.stdout.write(json.dumps(dataclasses.asdict(answer)) + "\n")
        else:
            shares = sorted(answer.classes.items(), key=lambda item: -item[1])
            text = ", ".join(f"{label} {100 * share:.1f} %" for label, share in shares if share >= 0.0005)
            sys.stdout.write(f"{path}\t{text}\n")
    list_problems((), failures)
    return 1 if failures else 0


def view_of(model: Segmenter, arguments: Namespace) -> View:
    """Convert command-line options to a view: scales, mirroring and tiling."""
    if arguments.global_context:
        model.require_image_level()
    return View(
        scales=parse_numbers("scales", arguments.scales, float, 0),
        flip=arguments.flip,
        memory=parse_memory(arguments.memory),
        tile=arguments.tile,
        overlap=arguments.overlap,
        global_context=arguments.global_context,
    )


def scores_table(scores: SegmentationScores) -> Table:
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


def options_of(arguments: Namespace) -> SegmentOptions:
    """Convert command-line options to training options."""
    names = {field.name for field in dataclasses.fields(SegmentOptions)}
    values = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    values |= {
        "rates": () if arguments.rates == "auto" else parse_numbers("rates", arguments.rates),
        "crop": parse_numbers("crop", arguments.crop),
        "scale": parse_numbers("scale", arguments.scale, float, 0),
        "ignore": None if arguments.ignore is None else parse_numbers("ignore", arguments.ignore, int, 0),
    }
    return SegmentOptions(**values)
