"""`sppnet train classify` and what `evaluate` and `predict` do with a classifier."""

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
from sppnet.classify.predict import predict_images, size_policy
from sppnet.classify.trained_sides import count_outside, outside_text
from sppnet.cli.common import (
    complain,
    find_images,
    list_failures,
    numbers,
    parse_level_text,
)
from sppnet.console import results, track
from sppnet.data.formats.class_folders import read_classification
from sppnet.data.resize import POLICIES, Resize
from sppnet.data.splits import find_split
from sppnet.inference.results import Failure
from sppnet.ops.bins import Rule
from sppnet.ops.reference import Reduce
from sppnet.training.options import TrainOptions

RESIZE = f"size policy: {', '.join(POLICIES)}; a side follows a colon, as in shorter-side:256"


def train_parser() -> ArgumentParser:
    """Options of `sppnet train classify`."""
    parser = ArgumentParser(
        description="Train a classifier. Ctrl-C stops after the step under way and loses nothing; --resume goes on."
    )
    add, default = parser.add_argument, TrainOptions()
    add("data", help="folder of class folders, folder of splits (train, val), or CSV file with path,label")
    add("--config", action="config", help="YAML file with any of these options")
    add("--out", required=True, metavar="RUN", help="folder for the model, its metrics and its checkpoint")
    add("--val", type=str | None, metavar="DATA", help="images for validation; by default the split val, if any")
    add("--resume", action="store_true", help="go on with the training in RUN, if there is one")
    add("--backbone", default=default.backbone, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add(
        "--stage",
        type=int | None,
        help="feature map of the backbone: 0 the finest, -1 the coarsest; left out: last",
    )
    add("--weights", default=default.weights, help="auto, hub (downloads timm's), none, or a safetensors file")
    add("--levels", type=list[int] | str, default="3,2,1", help="levels of the pyramid, such as 6,3,2,1 or 2x3,1")
    add("--reduce", type=Reduce, default=default.reduce, help="what a bin keeps of its cells")
    add("--rule", type=Rule, default=default.rule, help="how maps are cut into bins")
    add("--head", type=str | None, help="linear, fc (the paper's three layers) or svm (the choice if frozen)")
    add("--freeze-backbone", action="store_true", help="compute features once, keep them on disk, train the head")
    add("--sizes", default=default.sizes, help="training sizes: 224; 180,224 in turn; 180-224 drawn; native")
    add("--resize", type=str | None, metavar="POLICY", help=f"{RESIZE}; for evaluation and frozen features")
    add("--max-pixels", type=int, default=default.max_pixels, help="bound of native sizes, height times width")
    add("--epochs", type=int, default=default.epochs, help="passes over the images")
    add("--batch", type=int, default=default.batch, help="images a batch, of all processes together")
    add("--batch-pixels", type=int | None, help="native sizes: most pixels of a batch with its padding, a process")
    add("--optimizer", default=default.optimizer, help="adamw or sgd")
    add("--lr", type=float | None, help="highest learning rate; left out: 3e-4 for adamw, 1e-2 for sgd")
    add("--weight-decay", type=float | None, help="left out: 5e-2 for adamw, 5e-4 for sgd")
    add("--schedule", default=default.schedule, help="cosine or step")
    add("--precision", default=default.precision, help="32-true or bf16-mixed")
    add("--svm-c", type=float, default=default.svm_c, help="penalty of the SVM")
    add("--seed", type=int, default=default.seed, help="of everything that is drawn")
    add("--workers", type=int, default=default.workers, help="processes that decode images")
    add("--deterministic", action="store_true", help="equal seeds give equal bits, on a GPU too; else an error")
    add("--device", default=default.device, help="auto, cpu, cuda or mps")
    add("--devices", type=int, default=default.devices, help="processes, one a GPU; torchrun needs no number here")
    add("--nodes", type=int, default=default.nodes, help="machines, each with that many processes")
    add("--cache", type=str | None, metavar="DIR", help="folder for features and sizes that runs may share; else RUN")
    add("--tensorboard", action="store_true", help="write TensorBoard events into RUN too")
    return parser


def train(arguments: Namespace) -> int:
    """Train; 1 if it was interrupted."""
    from sppnet.classify.train import train_classifier

    names = {field.name for field in dataclasses.fields(TrainOptions)}
    values = {name: value for name, value in vars(arguments).items() if name in names}
    options = TrainOptions(**{**values, "levels": parse_level_text(arguments.levels)})
    training = train_classifier(arguments.data, arguments.out, options, val=arguments.val, resume=arguments.resume)
    list_failures(training.failures, training.skipped)
    if not training.finished:
        complain(f"stopped; the same command with --resume goes on with {training.run}")
        return 1
    if training.scores:
        results.print(_score_table("accuracy", training.scores))
    results.print(f"{training.run} is ready after {training.seconds:.0f} s", highlight=False, markup=False)
    return 0


def evaluate(model: Classifier, arguments: Namespace) -> int:
    """Score a classifier; 1 if an image could not be read."""
    split = arguments.split or find_split(arguments.data, "test", "val", "valid", "validation")
    data = read_classification(arguments.data, split, model.config.classes)
    policies = _policies(model, arguments)
    evaluations = [
        evaluate_classifier(model, data.samples, resize=policy, views=arguments.views) for policy in policies
    ]
    failures = {failure.path: failure for evaluation in evaluations for failure in evaluation.failures}
    if arguments.json:
        content = _content(arguments, evaluations)
        content["failures"] = [{"path": failure.path, "reason": failure.reason} for failure in failures.values()]
        sys.stdout.write(json.dumps(content) + "\n")
    elif arguments.sizes:
        results.print(_size_table(model, evaluations))
    else:
        for title, parts in _evaluation_tables(evaluations).items():
            results.print(_score_table(title, parts))
    list_failures(tuple(failures.values()), data.skipped)
    for evaluation in [] if arguments.sizes else evaluations:
        if text := outside_text(model.config, evaluation.outside, evaluation.scores.images):
            complain(f"{evaluation.resize}: {text}" if arguments.compare else text)
    return 1 if failures else 0


def _policies(model: Classifier, arguments: Namespace) -> list[Resize | None]:
    """The size policies that are asked for, one by one; None for those of views."""
    several = [name for name in ("compare", "sizes") if arguments[name]]
    if several and (arguments.resize or arguments.views != "full"):
        raise ValueError(f"{several[0]}: it takes the place of --resize, and views have sizes of their own")
    if len(several) > 1:
        raise ValueError("sizes: it takes shorter sides where --compare takes size policies; give one of the two")
    if arguments.views != "full":
        return [None]
    if arguments.sizes:
        return [size_policy(model, f"shorter-side:{side}") for side in numbers("sizes", arguments.sizes)]
    asked = arguments.compare.split(",") if arguments.compare else [arguments.resize]
    return [size_policy(model, name) for name in asked]


def predict(model: Classifier, arguments: Namespace) -> int:
    """Classify images, a line for each; 1 if one could not be read."""
    paths, failures = find_images(arguments.images)
    answers = predict_images(model, paths, resize=arguments.resize, views=arguments.views, batch=arguments.batch)
    answered = outside = 0
    for result in track(answers, "predicting", len(paths)):
        if isinstance(result, Failure):
            failures.append(result.error)
            continue
        answered += 1
        outside += count_outside(model.config, [result], arguments.views)
        if arguments.json:
            sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")
        else:
            sys.stdout.write(f"{result.source}\t{result.label}\t{result.score:.3f}\n")
    list_failures(tuple(failures), ())
    if text := outside_text(model.config, outside, answered):
        complain(text)
    return 1 if failures else 0


def _content(arguments: Namespace, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """What --json prints: one evaluation, with --compare the others too, with --sizes all by their side."""
    if arguments.sizes:
        sides = (evaluation.resize.removeprefix("shorter-side:") for evaluation in evaluations)
        return {"sizes": {side: _evaluation_content(one) for side, one in zip(sides, evaluations, strict=True)}}
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
        return {"the same images by size policy": {evaluation.resize: evaluation.scores for evaluation in evaluations}}
    (evaluation,) = evaluations
    return {
        "accuracy": {f"all images, {evaluation.resize}": evaluation.scores},
        "by size": evaluation.by_size,
        "by aspect ratio": evaluation.by_aspect,
    }


def _size_table(model: Classifier, evaluations: Sequence[Evaluation]) -> Table:
    """Top-1 by shorter side and by the images' aspect ratio."""
    groups = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.by_aspect))
    title = "top-1 % by shorter side in pixels and by the images' aspect ratio, width/height"
    if model.config.trained_sides:
        least, greatest = model.config.trained_sides
        title += f"; * has images outside the {least} to {greatest} pixels that the network was trained on"
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
