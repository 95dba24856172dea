"""`sppnet train classify`, and `sppnet evaluate` and `sppnet predict` for classifiers."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.markup import escape
from rich.table import Table

from sppnet.classify.evaluate import Evaluation, Scores, evaluate_classifier
from sppnet.classify.model import Classifier
from sppnet.classify.options import TrainOptions
from sppnet.classify.predict import predict_images, size_policy
from sppnet.classify.trained_sides import count_outside, outside_warning
from sppnet.cli.common import find_images, list_failures, parse_level_text, parse_numbers, print_error
from sppnet.console import results, track
from sppnet.data.formats.class_folders import read_classification
from sppnet.data.resize import POLICIES, Resize
from sppnet.data.splits import find_split
from sppnet.inference.results import Failure
from sppnet.ops.bins import Rule
from sppnet.ops.reference import Reduce

RESIZE = f"resize policy: {', '.join(POLICIES)}, with an optional side as in shorter-side:256"


def train_parser() -> ArgumentParser:
    """Build the argument parser of `sppnet train classify`."""
    parser = ArgumentParser(
        description="Train a classifier. Ctrl-C stops after the current step and loses no progress; --resume continues."
    )
    add, default = parser.add_argument, TrainOptions()
    add("data", help="folder of class folders, folder of splits (train, val), or CSV file with path,label")
    add("--config", action="config", help="YAML file with any of these options")
    add("--out", required=True, metavar="RUN", help="output folder for the model, its metrics and its checkpoint")
    add("--val", type=str | None, metavar="DATA", help="validation images; default: the split val, if there is one")
    add("--resume", action="store_true", help="continue the training in RUN, if there is one")
    add("--backbone", default=default.backbone, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add("--stage", type=int | None, help="feature map: 0 (finest) to -1 (coarsest); default: the classifier's input")
    add("--weights", default=default.weights, help="weights: auto, hub (timm download), none, or a safetensors file")
    add("--levels", type=list[int] | str, default="3,2,1", help="pyramid levels, such as 6,3,2,1 or 2x3,1")
    add("--reduce", type=Reduce, default=default.reduce, help="pooling within a bin: max or avg")
    add("--rule", type=Rule, default=default.rule, help="division of maps into bins: adaptive, sliding or caffe")
    add("--head", type=str | None, help="linear, fc (paper) or svm; default: svm for a frozen backbone, else linear")
    add("--freeze-backbone", action="store_true", help="compute features once, cache them on disk and train the head")
    add("--sizes", default=default.sizes, help="training sizes: 224; 180,224 (alternating); 180-224 (random); native")
    add("--resize", type=str | None, metavar="POLICY", help=f"{RESIZE}; for evaluation and frozen features")
    add("--max-pixels", type=int, default=default.max_pixels, help="largest image area at native sizes, in pixels")
    add("--epochs", type=int, default=default.epochs, help="number of epochs")
    add("--batch", type=int, default=default.batch, help="images per batch, over all processes")
    add("--batch-pixels", type=int | None, help="native sizes: largest padded batch per process, in pixels")
    add("--optimizer", default=default.optimizer, help="optimizer: adamw or sgd")
    add("--lr", type=float | None, help="peak learning rate; default: 3e-4 for adamw, 1e-2 for sgd")
    add("--weight-decay", type=float | None, help="weight decay; default: 5e-2 for adamw, 5e-4 for sgd")
    add("--schedule", default=default.schedule, help="learning rate schedule: cosine or step")
    add("--precision", default=default.precision, help="precision: 32-true or bf16-mixed")
    add("--svm-c", type=float, default=default.svm_c, help="penalty C of the SVM")
    add("--seed", type=int, default=default.seed, help="random seed")
    add("--workers", type=int, default=default.workers, help="number of processes that decode images")
    add("--deterministic", action="store_true", help="make equal seeds give identical results on a GPU, or fail")
    add("--device", default=default.device, help="device: auto, cpu, cuda or mps")
    add("--devices", type=int, default=default.devices, help="processes per machine, one per GPU; omit with torchrun")
    add("--nodes", type=int, default=default.nodes, help="number of machines, each with --devices processes")
    add("--cache", type=str | None, metavar="DIR", help="cache of features and sizes, shareable; default: RUN")
    add("--tensorboard", action="store_true", help="also write TensorBoard events to RUN")
    return parser


def train(arguments: Namespace) -> int:
    """Train and return 0, or 1 if interrupted."""
    from sppnet.classify.train import train_classifier

    names = {field.name for field in dataclasses.fields(TrainOptions)}
    values = {name: value for name, value in vars(arguments).items() if name in names}
    options = TrainOptions(**{**values, "levels": parse_level_text(arguments.levels)})
    training = train_classifier(arguments.data, arguments.out, options, val=arguments.val, resume=arguments.resume)
    list_failures(training.failures, training.skipped)
    if not training.finished:
        print_error(f"stopped; run the same command with --resume to continue {training.run}")
        return 1
    if training.scores:
        results.print(_score_table("accuracy", training.scores))
    results.print(f"{training.run} is ready after {training.seconds:.0f} s", highlight=False, markup=False)
    return 0


def evaluate(model: Classifier, arguments: Namespace) -> int:
    """Score a classifier and return 0, or 1 if an image could not be read."""
    split = arguments.split or find_split(arguments.data, "test", "val", "valid", "validation")
    data = read_classification(arguments.data, split, model.config.classes)
    policies = _policies(model, arguments)
    evaluations = [
        evaluate_classifier(model, data.samples, resize=policy, views=arguments.views) for policy in policies
    ]
    failures = {failure.path: failure for evaluation in evaluations for failure in evaluation.failures}
    if arguments.json:
        content = _json_content(arguments, evaluations)
        content["failures"] = [{"path": failure.path, "reason": failure.reason} for failure in failures.values()]
        sys.stdout.write(json.dumps(content) + "\n")
    elif arguments.sizes:
        results.print(_size_table(model, evaluations))
    else:
        for title, parts in _evaluation_tables(evaluations).items():
            results.print(_score_table(title, parts))
    list_failures(tuple(failures.values()), data.skipped)
    for evaluation in [] if arguments.sizes else evaluations:
        if text := outside_warning(model.config, evaluation.outside, evaluation.scores.images):
            print_error(f"{evaluation.resize}: {text}" if arguments.compare else text)
    return 1 if failures else 0


def _policies(model: Classifier, arguments: Namespace) -> list[Resize | None]:
    """Return the resize policies to evaluate; None with views, which have their own sizes."""
    comparisons = [name for name in ("compare", "sizes") if arguments[name]]
    if comparisons and (arguments.resize or arguments.views != "full"):
        conflict = "--resize" if arguments.resize else "--views"
        raise ValueError(f"{comparisons[0]}: expected neither --resize nor --views, got {conflict}")
    if len(comparisons) > 1:
        raise ValueError("sizes: expected either --sizes or --compare, got both")
    if arguments.views != "full":
        return [None]
    if arguments.sizes:
        return [size_policy(model, f"shorter-side:{side}") for side in parse_numbers("sizes", arguments.sizes)]
    names = arguments.compare.split(",") if arguments.compare else [arguments.resize]
    return [size_policy(model, name) for name in names]


def predict(model: Classifier, arguments: Namespace) -> int:
    """Classify images, print one line each, and return 0, or 1 if an image could not be read."""
    paths, failures = find_images(arguments.images)
    predictions = predict_images(model, paths, resize=arguments.resize, views=arguments.views, batch=arguments.batch)
    count = outside = 0
    for result in track(predictions, "predicting", len(paths)):
        if isinstance(result, Failure):
            failures.append(result.error)
            continue
        count += 1
        outside += count_outside(model.config, [result], arguments.views)
        if arguments.json:
            sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")
        else:
            sys.stdout.write(f"{result.source}\t{result.label}\t{result.score:.3f}\n")
    list_failures(tuple(failures), ())
    if text := outside_warning(model.config, outside, count):
        print_error(text)
    return 1 if failures else 0


def _json_content(arguments: Namespace, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the first evaluation, with those of --compare; or the evaluations of --sizes by shorter side."""
    if arguments.sizes:
        sides = (evaluation.resize.removeprefix("shorter-side:") for evaluation in evaluations)
        return {"sizes": dict(zip(sides, map(_evaluation_content, evaluations), strict=True))}
    content = _evaluation_content(evaluations[0])
    if arguments.compare:
        content["compare"] = {evaluation.resize: _evaluation_content(evaluation) for evaluation in evaluations}
    return content


def _evaluation_content(evaluation: Evaluation) -> dict[str, Any]:
    content = {"resize": evaluation.resize, **dataclasses.asdict(evaluation.scores), "outside": evaluation.outside}
    content["by_size"] = {name: dataclasses.asdict(scores) for name, scores in evaluation.by_size.items()}
    content["by_aspect"] = {name: dataclasses.asdict(scores) for name, scores in evaluation.by_aspect.items()}
    return content


def _evaluation_tables(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Scores]]:
    if len(evaluations) > 1:
        return {"same images by resize policy": {evaluation.resize: evaluation.scores for evaluation in evaluations}}
    (evaluation,) = evaluations
    return {
        "accuracy": {f"all images, {evaluation.resize}": evaluation.scores},
        "by size": evaluation.by_size,
        "by aspect ratio": evaluation.by_aspect,
    }


def _size_table(model: Classifier, evaluations: Sequence[Evaluation]) -> Table:
    """Tabulate top-1 accuracy by shorter side and aspect ratio."""
    groups = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.by_aspect))
    title = "top-1 % by shorter side in pixels (rows) and by aspect ratio, width/height (columns)"
    if model.config.trained_sides:
        smallest, largest = model.config.trained_sides
        title += f"; * some images are outside the training range of {smallest} to {largest} pixels"
    table = Table("", "all", *(escape(name.removeprefix("width/height ")) for name in groups), title=title)
    table.title_justify = "left"
    for evaluation in evaluations:
        side = evaluation.resize.removeprefix("shorter-side:") + (" *" if evaluation.outside else "")
        parts = [evaluation.scores, *(evaluation.by_aspect.get(name) for name in groups)]
        table.add_row(side, *(f"{100 * part.top1:.2f} ({part.images})" if part else "" for part in parts))
    return table


def _score_table(title: str, parts: dict[str, Scores]) -> Table:
    table = Table("", "images", "top-1 %", "top-5 %", "mean per class %", title=title, title_justify="left")
    for name, scores in parts.items():
        shares = (scores.top1, scores.top5, scores.mean_per_class_accuracy)
        table.add_row(escape(name), str(scores.images), *(f"{100 * share:.2f}" for share in shares))
    return table
