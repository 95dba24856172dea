"""`sppnet train segment` and what `evaluate` and `predict` do with a segmenter."""

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

from sppnet.cli.common import find_images, list_problems, numbers
from sppnet.console import console, results
from sppnet.errors import ImageError
from sppnet.inference.memory import parse_memory
from sppnet.layers.norms import Norm
from sppnet.segment.evaluate import SegmentationScores, evaluate_segmenter, json_content
from sppnet.segment.heads import Context, HeadName
from sppnet.segment.model import Segmenter
from sppnet.segment.options import ClassWeights, SegmentOptions
from sppnet.segment.pictures import write_mosaic
from sppnet.segment.predict import answer_stems, segment_file
from sppnet.segment.views import View, label_image

OUTPUT = "palette,overlay"
CLASSES = "file with a class name a line, or CSV with name and id or r,g,b; left out: the data set's own"


def train_parser() -> ArgumentParser:
    """Options of `sppnet train segment`."""
    parser = ArgumentParser(
        description="Train a network that gives each pixel of an image its class: DeepLab v3+, v3, v2 or PSPNet."
        " Ctrl-C loses nothing; --resume goes on."
    )
    add, default = parser.add_argument, SegmentOptions()
    add("data", help="images and masks: folders images and masks, VOC with SegmentationClass, or CamVid's layout")
    add("--config", action="config", help="YAML file with any of these options")
    add("--out", required=True, metavar="RUN", help="folder for the model and its checkpoint")
    add("--split", type=str | None, help="part of the data to train on; left out: train, or all without splits")
    add("--val", type=str | None, metavar="DATA", help="validation images; left out: the split val of the data")
    add("--classes", type=str | None, metavar="FILE", help=CLASSES)
    add(
        "--ignore",
        type=str | None,
        metavar="IDS",
        help="all ids of masks that do not count, by commas: 0,255; left out: 255",
    )
    add("--resume", action="store_true", help="go on with the training in RUN, if there is one")
    add("--head", type=HeadName, default=default.head, help=", ".join(get_args(HeadName)))
    add("--context", type=Context, default=default.context, help="of deeplabv3plus: aspp, ppm or none")
    add("--backbone", default=default.backbone, help="convolutional network of timm")
    add("--weights", default=default.weights, help="auto, hub (downloads timm's), none, or a safetensors file")
    add("--output-stride", type=int, default=default.output_stride, help="pixels a cell of the last map: 8, 16 or 32")
    add("--rates", default="auto", help="of ASPP, such as 6,12,18; auto fits the papers' to the crop")
    add("--width", type=int, default=default.width, help="channels inside the head (the papers': 256)")
    add("--norm", type=Norm, default=default.norm, help="safe (batch norm that trains at batch 1), batch or group")
    add("--separable", type=bool | None, help="depthwise separable convolutions in the head; left out: deeplabv3plus")
    add("--image-level", type=bool, default=default.image_level, help="ASPP's image-level branch")
    add("--dropout", type=float, default=default.dropout, help="share of channels that the head drops in training")
    add("--crop", default=",".join(map(str, default.crop)), help="height,width that a step sees of an image, pixels")
    add("--scale", default=",".join(map(str, default.scale)), help="least,greatest factor of size before the crop")
    add("--jitter", type=float, default=default.jitter, help="brightness, contrast, saturation change by this share")
    add("--class-weights", type=ClassWeights, default=default.class_weights, help="none, root or median frequency")
    add("--epochs", type=int, default=default.epochs, help="times that each image is seen")
    add("--batch", type=int, default=default.batch, help="images a step; 1 works")
    add("--optimizer", default=default.optimizer, help="adamw or sgd")
    add("--lr", type=float | None, default=default.lr, help="highest learning rate")
    add("--weight-decay", type=float | None, help="left out: the optimiser's customary one")
    add("--schedule", default=default.schedule, help="poly, cosine or step")
    add("--precision", default=default.precision, help="32-true or bf16-mixed")
    add("--seed", type=int, default=default.seed, help="of everything that is drawn")
    add("--workers", type=int, default=default.workers, help="processes that decode images")
    add("--deterministic", action="store_true", help="equal seeds give equal bits, on a GPU too; else an error")
    add("--device", default=default.device, help="auto, cpu, cuda or mps")
    add("--tensorboard", action="store_true", help="write TensorBoard events too")
    return parser


def train(arguments: Namespace) -> int:
    """Train; 1 if it was interrupted."""
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
        console.print(f"stopped; the same command with --resume goes on with {training.run}", highlight=False)
        return 1
    if training.scores:
        results.print(scores_table(training.scores), f"in {training.seconds:.0f} seconds", highlight=False)
    results.print(f"{training.run} is ready", highlight=False, markup=False)
    return 0


def evaluate(model: Segmenter, arguments: Namespace) -> int:
    """Score a segmenter; 1 if an image or a mask could not be used."""
    from sppnet.data.formats.class_tables import ClassRow
    from sppnet.data.formats.segmentation import (
        choose_segmentation_split,
        read_segmentation,
    )

    split = choose_segmentation_split(arguments.data, arguments.split, "test", "val", "valid", "validation")
    ignore = numbers("ignore", arguments.ignore, int, 0) if arguments.ignore else model.config.ignore or None
    table = [ClassRow(*row) for row in model.config.table]
    data = read_segmentation(
        arguments.data, split, model.config.classes, ignore, class_file=arguments.classes, table=table
    )
    view = view_of(model, arguments)

    def answer(image: Image.Image) -> Tensor:
        return label_image(model, image, view)

    evaluation = evaluate_segmenter(model, data, answer)
    list_problems(data.problems, evaluation.failures)
    if arguments.pictures:
        write_mosaic(evaluation, data, answer, Path(arguments.pictures), model.config.colours)
        console.print(f"best and worst images are in {arguments.pictures}", highlight=False, markup=False)
    if arguments.json:
        sys.stdout.write(json.dumps(json_content(evaluation)) + "\n")
    else:
        results.print(scores_table(evaluation.scores))
    return 1 if evaluation.failures else 0


def predict(model: Segmenter, arguments: Namespace) -> int:
    """Give each pixel of images its class; 1 if an image could not be read."""
    view = view_of(model, arguments)
    outputs = tuple(arguments.output.split(","))
    paths, failures = find_images(arguments.images)
    folder = Path(arguments.out) if arguments.out else None
    if folder is None and arguments.output != OUTPUT:
        raise ValueError(f"output: {arguments.output} is written to a folder; name it with --out")
    stems: Sequence[Path | None] = answer_stems(paths, folder) if folder else [None] * len(paths)
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
            shown = ", ".join(f"{label} {100 * share:.1f} %" for label, share in shares if share >= 0.0005)
            sys.stdout.write(f"{path}\t{shown}\n")
    list_problems((), failures)
    return 1 if failures else 0


def view_of(model: Segmenter, arguments: Namespace) -> View:
    """How images are looked at, by what was typed."""
    if arguments.global_context:
        model.require_image_level()
    return View(
        scales=numbers("scales", arguments.scales, float, 0),
        flip=arguments.flip,
        memory=parse_memory(arguments.memory),
        tile=arguments.tile,
        overlap=arguments.overlap,
        global_context=arguments.global_context,
    )


def scores_table(scores: SegmentationScores) -> Table:
    """Intersection over union of each class and the means, in per cent."""
    table = Table("class", "IoU", "share of the pixels")
    total = max(sum(scores.pixels.values()), 1)
    for name, value in scores.per_class.items():
        shown = "-" if value is None else f"{100 * value:.1f}"
        table.add_row(escape(name), shown, f"{100 * scores.pixels[name] / total:.1f}")
    table.add_section()
    table.add_row("mean IoU", f"{100 * scores.miou:.1f}", "")
    table.add_row("pixel accuracy", f"{100 * scores.pixel_accuracy:.1f}", "")
    return table


def options_of(arguments: Namespace) -> SegmentOptions:
    """The settings that words on the command line mean."""
    names = {field.name for field in dataclasses.fields(SegmentOptions)}
    values = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    values |= {
        "rates": () if arguments.rates == "auto" else numbers("rates", arguments.rates),
        "crop": numbers("crop", arguments.crop),
        "scale": numbers("scale", arguments.scale, float, 0),
        "ignore": None if arguments.ignore is None else numbers("ignore", arguments.ignore, int, 0),
    }
    return SegmentOptions(**values)
