"""`sppnet train classify`, and `sppnet evaluate` and `sppnet predict` for classifiers."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace
from rich.markup import escape
from rich.table import Table

from sppnet.backbones.names import PAPER_BACKBONES
from sppnet.classify.options import ClassifyOptions
from sppnet.cli.common import (
    add_best_epoch,
    add_format,
    add_hardware,
    add_optimization,
    add_stages,
    find_images,
    list_failures,
    list_problems,
    print_error,
    print_row,
)
from sppnet.cli.console import line, message, results
from sppnet.cli.parser import CommandParser, levels, numbers, optional, options_of
from sppnet.data.resize import POLICIES
from sppnet.errors import printable
from sppnet.progress import track

if TYPE_CHECKING:
    from sppnet.classify.evaluate import ClassificationReport, Scores
    from sppnet.classify.model import Classifier


def train_parser() -> CommandParser:
    """Build the argument parser of `sppnet train classify`."""
    parser = CommandParser(
        "train classify",
        "Train a classifier. Ctrl-C stops after the current step and loses no progress; --resume continues.",
    )
    option, options = parser.option, ClassifyOptions()
    option("data", "data", "folder of class folders, folder of splits (train, val), or CSV file with path,label")
    add_format(parser)
    option("data", "--split", "split to train on; default: train, if there are splits", type=str | None)
    text = (
        "validation images: a split of DATA, or other data (of splits its val, else test), or none; default: the split"
        " val of DATA, else a tenth of the training images, chosen by --seed"
    )
    option("data", "--val", text, type=str | None, metavar="DATA")
    option("data", "--config", "YAML file with any of these options", action="config")
    add_network(parser, options)
    parser.fields("model", options, head="head; default: ridge for a frozen backbone, else linear")
    text = "last stages of the backbone to train: a number, all, or 0 to compute features once and train only the head"
    add_stages(parser, options, text)
    text = (
        f"resize policy of evaluation and frozen features: {', '.join(POLICIES)}, with an optional side as in"
        " shorter-side:256; default: native, or a shorter side of 8/7 of the largest training size"
    )
    parser.fields(
        "training",
        options,
        sizes="training sizes: 224; 180,224 (alternating); 180-224 (random); native",
        resize=text,
        max_pixels="largest image area at native sizes, in pixels; larger images are resized",
        epochs="number of epochs",
        batch="images per batch, over all processes",
        batch_pixels="native sizes: largest padded batch per process, in pixels; default: no limit",
        class_weights="class weights in the loss; balanced: by the inverse number of images",
        svm_c="penalty C of the head svm",
    )
    add_best_epoch(parser, options)
    parser.fields(
        "training",
        options,
        seed="random seed",
        deterministic="make equal seeds give identical results on a GPU, or fail",
    )
    add_optimization(parser, options)
    option(
        "output", "--out", "output folder for the model, its metrics and its checkpoint", required=True, metavar="RUN"
    )
    option("output", "--resume", "continue the training in RUN, if there is one", False, action="store_true")
    parser.fields(
        "output",
        options,
        cache="cache of features and image sizes, which runs may share; default: the folder cache in RUN",
        cache_limit="largest size of the cached features in GB",
        tensorboard="also write TensorBoard events to RUN",
    )
    add_hardware(parser, options)
    return parser


def add_network(parser: CommandParser, options: ClassifyOptions) -> None:
    """Add the options of the network, except its head."""
    parser.fields(
        "model",
        options,
        backbone=f"timm network, or {', '.join(PAPER_BACKBONES)}",
        stage="feature map: 0 (finest) to -1 (coarsest); default: the classifier's input",
        stages=(
            "further feature maps to pool, such as -1,-2, or none; default: those two for a frozen backbone",
            optional(numbers(int, -99, none=())),
        ),
        weights="weights: auto, hub (timm download), none, or a safetensors file",
        levels=("pyramid levels, such as 6,3,2,1 or 2x3,1", levels),
        reduce="pooling within a bin",
        rule="division of maps into bins",
    )


def train(arguments: Namespace) -> int:
    """Train and return 0."""
    from sppnet.classify.train import train_classifier

    training = train_classifier(
        arguments.data,
        arguments.out,
        options_of(ClassifyOptions, arguments),
        split=arguments.split,
        val=arguments.val,
        resume=arguments.resume,
        format=arguments.format,
    )
    list_problems(training.problems, training.failures)
    if not training.finished:
        raise KeyboardInterrupt
    if training.accuracy:
        results.print(_score_table("accuracy", training.accuracy, len(training.classes)))
    line(f"{training.run} is ready after {training.seconds:.0f} s")
    return 0


def evaluate(model: "Classifier", arguments: Namespace) -> int:
    """Score a classifier and return 0, or 1 if an image could not be used."""
    from sppnet.classify.evaluate import evaluate_classifier, read_labeled
    from sppnet.classify.predict import size_policy
    from sppnet.classify.report import write_report
    from sppnet.classify.trained_sides import outside_warning

    policies = [arguments.resize]
    if arguments.compare:
        if arguments.resize or arguments.views != "full":
            conflict = "--resize" if arguments.resize else "--views"
            raise ValueError(f"compare: expected neither --resize nor --views, got {conflict}")
        if arguments.report:
            raise ValueError(f"report: expected no value with --compare, got {arguments.report}; omit one of them")
        names = [name.strip() for name in arguments.compare.split(",")]
        policies = [size_policy(model, f"shorter-side:{name}" if name.isdecimal() else name) for name in names]
    data = read_labeled(arguments.data, arguments.split, model.config.classes, arguments.format)
    reports = [evaluate_classifier(model, data, resize=policy, views=arguments.views) for policy in policies]
    first, failures = reports[0], {error.path: error for report in reports for error in report.failures}
    if arguments.json:
        content = first.to_dict()
        content["failures"] = [{"path": error.path, "reason": error.reason} for error in failures.values()]
        if arguments.compare:
            content["compare"] = {report.resize: report.to_dict() for report in reports}
            for part in content["compare"].values():
                del part["failures"]
        sys.stdout.write(json.dumps(content) + "\n")
    elif arguments.compare:
        scores = {report.resize: report.scores for report in reports}
        results.print(_score_table("same images by resize policy", scores, len(first.classes)))
        results.print(_aspect_table(model, reports))
    else:
        parts = {"accuracy": {f"all images, {first.resize}": first.scores}, "by size": first.by_size}
        for title, scores in (parts | {"by aspect ratio": first.by_aspect}).items():
            results.print(_score_table(title, scores, len(first.classes)))
        line(f"calibration error {first.ece:.3f}")
    if arguments.report:
        settings = {"run": arguments.run, "data": arguments.data, "threshold": model.config.threshold}
        write_report(first, Path(arguments.report), **settings)
        message(f"report written to {arguments.report}")
    list_problems(first.problems, list(failures.values()))
    if not arguments.compare and (text := outside_warning(model.config, first.outside, first.scores.images)):
        print_error(text)
    return 1 if failures else 0


def predict(model: "Classifier", arguments: Namespace) -> int:
    """Classify images, print one line each, and return 0, or 1 if an image could not be used."""
    from sppnet.classify.predict import predict_images
    from sppnet.classify.trained_sides import count_outside, outside_warning
    from sppnet.classify.writers import class_folders, csv_header, csv_row
    from sppnet.inference.results import Failure

    options = {name: arguments[name] for name in ("resize", "views", "batch", "unknown", "top")}
    list(predict_images(model, [], **options))  # checks the options before anything is read or written
    paths, failures = find_images(arguments.images)
    stream = predict_images(model, paths, **options)
    top = min(arguments.top, len(model.config.classes))
    count = outside = 0
    files = ExitStack()
    try:
        add = files.enter_context(class_folders(Path(arguments.out), top)) if arguments.out else None
        if arguments.csv:
            print_row(*csv_header(top))
        for result in track(stream, "predicting", len(paths)):
            if isinstance(result, Failure):
                failures.append(result.error)
                continue
            count += 1
            outside += count_outside(model.config, [result], arguments.views)
            if add:
                add(result)
            if arguments.csv:
                print_row(*csv_row(result))
            else:
                text = f"{printable(result.source)}\t{printable(result.label)}\t{result.score:.3f}"
                sys.stdout.write(f"{json.dumps(result.to_dict()) if arguments.json else text}\n")
    finally:  # also when interrupted
        files.close()
        list_failures(failures)
        if text := outside_warning(model.config, outside, count):
            print_error(text)
    return 1 if failures else 0


def _score_table(title: str, parts: "dict[str, Scores]", classes: int) -> Table:
    """Tabulate accuracies; the top-5 accuracy of five classes or fewer is always 100 %."""
    heads = ["", "images", "top-1 %", *["top-5 %"] * (classes > 5), "mean per class %"]
    table = Table(*heads, title=title, title_justify="left")
    for name, scores in parts.items():
        shares = (scores.top1, *[scores.top5] * (classes > 5), scores.mean_per_class_accuracy)
        table.add_row(escape(name), str(scores.images), *(f"{100 * share:.2f}" for share in shares))
    return table


def _aspect_table(model: "Classifier", reports: "list[ClassificationReport]") -> Table:
    """Tabulate top-1 accuracy by resize policy and aspect ratio."""
    groups = list(dict.fromkeys(name for report in reports for name in report.by_aspect))
    title = "top-1 % by resize policy (rows) and by aspect ratio, width/height (columns)"
    if model.config.trained_sides and any(report.outside for report in reports):
        smallest, largest = model.config.trained_sides
        title += f"; * some images are outside the training range of {smallest} to {largest} pixels"
    heads = (escape(name.removeprefix("width/height ")) for name in groups)
    table = Table("", "all", *heads, title=title, title_justify="left")
    for report in reports:
        parts = [report.scores, *(report.by_aspect.get(name) for name in groups)]
        cells = (f"{100 * part.top1:.2f} ({part.images})" if part else "" for part in parts)
        table.add_row(escape(report.resize) + " *" * bool(report.outside), *cells)
    return table
