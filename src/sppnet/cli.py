"""The command line: what is asked for on it is done by the other rooms."""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError

from sppnet import __version__
from sppnet.bins import Level, Rule
from sppnet.commands.bench import bench, bench_parser
from sppnet.commands.deploy import check, export, export_parser, verify_parser
from sppnet.console import console, results, track
from sppnet.data.datasets import find_split, read_classification
from sppnet.data.images import ImageError, list_images
from sppnet.data.resize import POLICIES
from sppnet.evaluate import Evaluation, Scores, evaluate_classifier
from sppnet.ops.plain import Reduce
from sppnet.options import TrainOptions
from sppnet.predict import Failure, predict_images, size_policy
from sppnet.runs import load, pick_device
from sppnet.views import Views

_RESIZE = f"size policy: {', '.join(POLICIES)}; a side follows a colon, as in shorter-side:256"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 2 wrong arguments, 1 anything else that failed.

    Images that cannot be read count as failed where an answer was asked for each (evaluate, predict); a training
    that could do without them is done.
    """
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run a command; the exit code. argparse itself exits for --help and for words that it does not know."""
    parser, commands = _parsers()
    arguments = parser.parse_args(list(argv))
    name, chosen = arguments.command, arguments[arguments.command]
    if name == "train":
        name, chosen = f"train {chosen.task}", chosen[chosen.task]
    try:
        return commands[name](chosen)
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on where it can (train: with --resume)")
    except (ValueError, TypeError) as error:
        _complain(str(error))
        return 1 if isinstance(error, ImageError) else 2
    except BrokenPipeError:  # the reader of standard output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, MemoryError, ModuleNotFoundError, RuntimeError, SafetensorError) as error:
        _complain(f"{type(error).__name__}: {error}" if not isinstance(error, ModuleNotFoundError) else str(error))
    return 1


def _parsers() -> tuple[ArgumentParser, dict[str, Callable[[Namespace], int]]]:
    parser = ArgumentParser(
        prog="sppnet", description="Spatial pyramid pooling: networks that take every image at its own size."
    )
    parser.add_argument("--version", action="version", version=f"sppnet {__version__}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    train = ArgumentParser(description="Train a model.")
    commands.add_subcommand("train", train, help="train a model")
    tasks = train.add_subcommands(dest="task", metavar="TASK")
    tasks.add_subcommand("classify", _train_parser(), help="a classifier, from a folder of class folders")
    commands.add_subcommand("evaluate", _evaluate_parser(), help="measure a model on labelled images")
    commands.add_subcommand("predict", _predict_parser(), help="classify images")
    commands.add_subcommand("export", export_parser(), help="write an ONNX file that takes every image size")
    commands.add_subcommand("verify", verify_parser(), help="compare an ONNX file with its run")
    commands.add_subcommand("demo", _demo_parser(), help="classify photographs and write a report with pictures")
    commands.add_subcommand("bench", bench_parser(), help="time the operators on maps of your own shape")
    return parser, {
        "train classify": _train,
        "evaluate": _evaluate,
        "predict": _predict,
        "export": export,
        "verify": check,
        "demo": _demo,
        "bench": bench,
    }


def _train_parser() -> ArgumentParser:
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
    add("--stage", type=int | None, help="feature map of the backbone: 0 the finest, -1 the coarsest; none: the last")
    add("--weights", default=default.weights, help="auto, hub (downloads timm's), none, or a safetensors file")
    add("--levels", type=list[int] | str, default="3,2,1", help="levels of the pyramid, such as 6,3,2,1 or 2x3,1")
    add("--reduce", type=Reduce, default=default.reduce, help="what a bin keeps of its cells")
    add("--rule", type=Rule, default=default.rule, help="how maps are cut into bins")
    add("--head", type=str | None, help="linear, fc (the paper's three layers) or svm (the choice if frozen)")
    add("--freeze-backbone", action="store_true", help="compute features once, keep them on disk, train the head")
    add("--sizes", default=default.sizes, help="training sizes: 224; 180,224 in turn; 180-224 drawn; native")
    add("--resize", type=str | None, metavar="POLICY", help=f"{_RESIZE}; for evaluation and frozen features")
    add("--max-pixels", type=int, default=default.max_pixels, help="bound of native sizes, height times width")
    add("--epochs", type=int, default=default.epochs, help="passes over the images")
    add("--batch", type=int, default=default.batch, help="images a batch")
    add("--optimizer", default=default.optimizer, help="adamw or sgd")
    add("--lr", type=float | None, help="highest learning rate; none: 3e-4 for adamw, 1e-2 for sgd")
    add("--weight-decay", type=float | None, help="none: 5e-2 for adamw, 5e-4 for sgd")
    add("--schedule", default=default.schedule, help="cosine or step")
    add("--precision", default=default.precision, help="32-true or bf16-mixed")
    add("--svm-c", type=float, default=default.svm_c, help="penalty of the SVM")
    add("--seed", type=int, default=default.seed, help="of everything that is drawn")
    add("--workers", type=int, default=default.workers, help="processes that decode images")
    add("--device", default=default.device, help="auto, cpu, cuda or mps")
    add("--cache", type=str | None, metavar="DIR", help="folder for frozen features that runs may share; none: RUN")
    add("--tensorboard", action="store_true", help="write TensorBoard events into RUN too")
    return parser


def _evaluate_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Measure a classifier on labelled images.")
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network")
    add("data", help="folder of class folders, folder of splits, or CSV file with path,label")
    add("--split", type=str | None, help="of a folder of splits; none: test, or val where there is no test")
    add("--resize", type=str | None, metavar="POLICY", help=f"{_RESIZE}; none: the run's own")
    add("--compare", type=str | None, metavar="POLICIES", help="several policies side by side, separated by commas")
    add("--views", type=str, default="full", help=f"views of an image: {', '.join(get_args(Views))}")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def _predict_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Classify images, each at its own size.")
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network")
    add("images", nargs="+", help="files or folders")
    add("--resize", type=str | None, metavar="POLICY", help=f"{_RESIZE}; none: the run's own")
    add("--views", type=str, default="full", help=f"views of an image: {', '.join(get_args(Views))}")
    add("--batch", type=int, default=32, help="images read at a time; the answers do not depend on it")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--json", action="store_true", help="print one JSON object a line for each image")
    return parser


def _demo_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Classify real photographs with the embedded ImageNet network, at their own and at odd sizes, and"
        " write a report with each pyramid level drawn over them."
    )
    parser.add_argument("images", nargs="*", help="your own photographs; none: those of installed packages")
    parser.add_argument("--out", default="sppnet-demo", help="folder for the report")
    parser.add_argument("--levels", type=str, default="6,3,2,1", help="levels that are drawn")
    return parser


def _train(arguments: Namespace) -> int:
    from sppnet.train import train_classifier

    names = {field.name for field in dataclasses.fields(TrainOptions)}
    values = {name: value for name, value in vars(arguments).items() if name in names}
    options = TrainOptions(**{**values, "levels": parse_level_text(arguments.levels)})
    training = train_classifier(arguments.data, arguments.out, options, val=arguments.val, resume=arguments.resume)
    _list_failures(training.failures, training.skipped)
    if not training.finished:
        _complain(f"stopped; the same command with --resume goes on with {training.run}")
        return 1
    if training.scores:
        results.print(_score_table("accuracy", training.scores))
    results.print(f"{training.run} is ready after {training.seconds:.0f} s", highlight=False, markup=False)
    return 0


def _evaluate(arguments: Namespace) -> int:
    model = load(arguments.run).to(pick_device(arguments.device))
    split = arguments.split or find_split(arguments.data, "test", "val", "valid", "validation")
    data = read_classification(arguments.data, split, model.config.classes)
    if arguments.compare and (arguments.resize or arguments.views != "full"):
        raise ValueError("compare: it takes the place of --resize, and views have sizes of their own")
    asked = arguments.compare.split(",") if arguments.compare else [arguments.resize]
    if arguments.views != "full":
        asked = [None]
    policies = [size_policy(model, name) for name in asked]
    evaluations = [
        evaluate_classifier(model, data.samples, resize=policy, views=arguments.views) for policy in policies
    ]
    failures = {failure.path: failure for evaluation in evaluations for failure in evaluation.failures}
    _list_failures(tuple(failures.values()), data.skipped)
    if arguments.json:
        content = _evaluation_content(evaluations[0])
        if arguments.compare:
            content["compare"] = {evaluation.resize: _evaluation_content(evaluation) for evaluation in evaluations}
        content["failures"] = [{"path": failure.path, "reason": failure.reason} for failure in failures.values()]
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        for title, parts in _evaluation_tables(evaluations).items():
            results.print(_score_table(title, parts))
    return 1 if failures else 0


def _predict(arguments: Namespace) -> int:
    model = load(arguments.run).to(pick_device(arguments.device))
    failures: list[ImageError] = []
    paths: list[Path] = []
    for name in arguments.images:
        try:
            paths += list_images(name)
        except ImageError as error:
            failures.append(error)
    answers = predict_images(model, paths, resize=arguments.resize, views=arguments.views, batch=arguments.batch)
    for result in track(answers, "predicting", len(paths)):
        if isinstance(result, Failure):
            failures.append(result.error)
        elif arguments.json:
            sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")
        else:
            sys.stdout.write(f"{result.source}\t{result.label}\t{result.score:.3f}\n")
    _list_failures(tuple(failures), ())
    return 1 if failures else 0


def _demo(arguments: Namespace) -> int:
    from sppnet.demo import run_demo

    levels = parse_level_text(arguments.levels)
    square = [level for level in levels if isinstance(level, int)]
    if len(square) < len(levels):
        raise ValueError(f"levels: the demonstration draws n x n levels, such as 6,3,2,1; got {arguments.levels}")
    result = run_demo(Path(arguments.out), arguments.images, square)
    table = Table("photograph", "size", "answer", "probability")
    for answer in result.answers:
        size = f"{answer.size[0]} x {answer.size[1]}"
        table.add_row(escape(Path(answer.source).name), size, escape(answer.label), f"{answer.score:.2f}")
    results.print(table)
    results.print(f"open {result.report.resolve()}", highlight=False, soft_wrap=True, markup=False)
    return 0


def parse_level_text(text: str | list[int]) -> tuple[Level, ...]:
    """Levels as people type them: ``6,3,2,1`` or, with rows x columns, ``2x3,1``; or a list from a YAML file.

    Raises:
        ValueError: anything else.
    """
    parts = [part for part in re.split(r"[,\s]+", str(text).strip("()[] ")) if part]
    if not parts or not all(re.fullmatch(r"\d+(x\d+)?", part) for part in parts):
        raise ValueError(f"levels: expected numbers such as 6,3,2,1 or 2x3,1; got {text!r}")
    levels: list[Level] = []
    for part in parts:
        rows, _, columns = part.partition("x")
        levels.append((int(rows), int(columns)) if columns else int(rows))
    return tuple(levels)


def _evaluation_content(evaluation: Evaluation) -> dict[str, Any]:
    content = {"resize": evaluation.resize, **dataclasses.asdict(evaluation.scores)}
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


def _score_table(title: str, parts: dict[str, Scores]) -> Table:
    table = Table("", "images", "top-1 %", "top-5 %", "mean per class %", title=title, title_justify="left")
    for name, scores in parts.items():
        shares = (scores.top1, scores.top5, scores.mean_per_class_accuracy)
        table.add_row(escape(name), str(scores.images), *(f"{100 * share:.2f}" for share in shares))
    return table


def _list_failures(failures: Sequence[ImageError], skipped: Sequence[Path]) -> None:
    if skipped:
        console.print(f"{len(skipped)} files are no images and were passed over:", highlight=False)
        for path in skipped:
            console.print(f"  {path}", highlight=False, soft_wrap=True, markup=False)
    if failures:
        console.print(f"{len(failures)} images could not be used:", highlight=False)
        for failure in failures:
            console.print(f"  {failure}", highlight=False, soft_wrap=True, markup=False)


def _complain(text: str) -> None:
    console.print(f"sppnet: {text}", highlight=False, soft_wrap=True, markup=False)
