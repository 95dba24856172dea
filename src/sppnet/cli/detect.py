"""`sppnet train detect` and what `evaluate` and `predict` do with a detector."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import get_args

from jsonargparse import ArgumentParser, Namespace
from rich.markup import escape
from rich.table import Table

from sppnet.cli.common import find_images, list_problems, numbers, parse_level_text
from sppnet.console import console, results, track
from sppnet.data.images import load_image
from sppnet.detect.model import Detector, Method, Scorer, content_of
from sppnet.detect.options import DetectOptions
from sppnet.features.encoder import ScaleRule
from sppnet.inference.results import above
from sppnet.ops.bins import CellRule
from sppnet.ops.reference import Reduce

PROPOSALS = "selective-search, -fast, -quality, grid, several of them by commas, or a file of boxes"
# What is drawn and listed unless something else is asked for: the authors' demonstration shows margins from -0.5 on.
SHOWN = {"svm": -0.5, "softmax": 0.5}


def train_parser() -> ArgumentParser:
    """Options of `sppnet train detect`."""
    parser = ArgumentParser(
        description="Train a detector on images with boxes: SPP-net (one pass of the network an image), R-CNN (one a"
        " window) or Fast R-CNN (the network trained too). Ctrl-C loses nothing; --resume goes on."
    )
    add, default = parser.add_argument, DetectOptions()
    add("data", help="data set in VOC or COCO layout")
    add("--config", action="config", help="YAML file with any of these options")
    add("--out", required=True, metavar="RUN", help="folder for the model and its checkpoint")
    add("--split", type=str | None, help="part of the data to train on; left out: train, or all without splits")
    add("--resume", action="store_true", help="go on with the training in RUN, if there is one")
    add("--method", type=Method, default=default.method, help=", ".join(get_args(Method)))
    add("--backbone", default=default.backbone, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add("--stage", type=int | None, help="feature map of the backbone: 0 the finest; left out: the last of stride 16")
    add("--weights", default=default.weights, help="auto, hub (downloads timm's), none, or a safetensors file")
    add("--levels", default="6,3,2,1", help="levels of the pyramid; Fast R-CNN has the one level 7")
    add("--scales", default="688", help="shorter sides of the images in pixels, such as 480,576,688,864,1200")
    add("--rule", type=CellRule, default=default.rule, help="how boxes become cells: paper, released or roi_pool")
    add("--scale-rule", type=ScaleRule, default=default.scale_rule, help="of several scales: paper or released")
    add("--reduce", type=Reduce, default=default.reduce, help="what a bin keeps of its cells")
    add(
        "--hidden",
        default="1024,1024",
        help="outputs of fc6 and fc7 (the paper's: 4096,4096); none: scores on the pool",
    )
    add("--scorer", type=Scorer, default=default.scorer, help="svm, or softmax: the fine-tuned layer itself")
    add("--finetune", type=bool, default=True, help="train fc6 and fc7; false leaves them as they are drawn")
    add("--mirror", type=bool, default=True, help="fine-tune on mirror images too")
    add("--regression", type=bool, default=True, help="of boxes")
    add("--proposals", default=default.proposals, help=PROPOSALS)
    add("--windows", type=int, default=default.windows, help="most windows of an image")
    add("--proposal-seconds", type=float | None, help="an image's search begins nothing new after so many")
    add("--epochs", type=int, default=default.epochs, help="of --steps batches each; of fast, of all images")
    add("--steps", type=int, default=default.steps, help="batches of an epoch of fine-tuning")
    add("--batch", type=int, default=default.batch, help="windows a batch, a quarter of them on objects")
    add("--optimizer", default=default.optimizer, help="adamw or sgd")
    add("--lr", type=float | None, help="highest learning rate; left out: the optimiser's customary one")
    add("--weight-decay", type=float | None, help="left out: the optimiser's customary one")
    add("--precision", default=default.precision, help="32-true or bf16-mixed")
    add("--seed", type=int, default=default.seed, help="of everything that is drawn")
    add("--workers", type=int, default=default.workers, help="images searched for proposals at a time")
    add("--deterministic", action="store_true", help="equal seeds give equal bits, on a GPU too; else an error")
    add("--device", default=default.device, help="auto, cpu, cuda or mps")
    add(
        "--cache",
        type=str | None,
        metavar="DIR",
        help="folder for proposals and features that runs may share; left out: RUN",
    )
    return parser


def train(arguments: Namespace) -> int:
    """Train; 1 if it was interrupted."""
    from sppnet.detect.train import train_detector

    training = train_detector(
        arguments.data, arguments.out, options_of(arguments), split=arguments.split, resume=arguments.resume
    )
    list_problems(training.problems, training.failures)
    if not training.finished:
        console.print(f"stopped; the same command with --resume goes on with {training.run}", highlight=False)
        return 1
    table = Table("part", "seconds")
    for name, seconds in training.seconds.items():
        table.add_row(name, f"{seconds:.1f}")
    results.print(table)
    results.print(f"{training.run} is ready", highlight=False, markup=False)
    return 0


def options_of(arguments: Namespace) -> DetectOptions:
    """The settings that words on the command line mean."""
    names = {field.name for field in dataclasses.fields(DetectOptions)}
    values = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    values |= {
        "levels": parse_level_text(arguments.levels),
        "scales": numbers("scales", arguments.scales),
        "hidden": () if arguments.hidden == "none" else numbers("hidden", arguments.hidden),
    }
    return DetectOptions(**values)


def evaluate(model: Detector, arguments: Namespace) -> int:
    """Score a detector; 1 if an image could not be read."""
    from sppnet.data.formats.detection import choose_split, read_detection
    from sppnet.detect.evaluate import evaluate_detector
    from sppnet.detect.pictures import write_mosaic
    from sppnet.evaluation.average_precision import json_content
    from sppnet.evaluation.curves import write_curves

    split = choose_split(arguments.data, arguments.split, "test", "val", "valid", "validation")
    data = read_detection(arguments.data, split, model.config.classes, more_classes=True)
    strange = data.classes[len(model.config.classes) :]
    if not any(len(sample.boxes[~sample.difficult]) for sample in data.samples):
        raise ValueError(f"data: {data.root}, split {split}, has no object to score against")
    if arguments.pictures:
        Path(arguments.pictures).mkdir(parents=True, exist_ok=True)
    if strange:
        text = f"classes that the model does not know, whose objects count as missed: {', '.join(strange)}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    override_proposals(model, arguments)
    exact = None
    if arguments.svd or arguments.head != "float32":
        small = cheaper(model, arguments)
        exact = evaluate_detector(model, data.samples, data.classes, _cache(arguments), arguments.workers).scores
        model = small
    evaluation = evaluate_detector(model, data.samples, data.classes, _cache(arguments), arguments.workers)
    list_problems(data.problems, evaluation.failures)
    if arguments.pictures:
        folder = Path(arguments.pictures)
        write_curves(evaluation.scores, folder)
        write_mosaic(evaluation.found, evaluation.samples, data.classes, folder)
        console.print(f"curves and mosaics are in {folder}", highlight=False, markup=False)
    content = json_content(evaluation.scores)
    content["proposal_recall"] = dict(zip(("0.5", "0.7", "0.9"), evaluation.recall.fractions, strict=True))
    if exact:
        content |= {"exact": {"ap50": exact.ap50, "map": exact.map}, "loss_ap50": exact.ap50 - evaluation.scores.ap50}
    content["failures"] = [{"path": failure.path, "reason": failure.reason} for failure in evaluation.failures]
    if arguments.json:
        sys.stdout.write(json.dumps(content) + "\n")
        return 1 if evaluation.failures else 0
    table = Table("class", "objects", "AP50", "AP50, 11 points", "AP50:95")
    for name, one in evaluation.scores.per_class.items():
        table.add_row(escape(name), str(one.objects), *(_percent(value) for value in (one.ap50, one.voc07, one.ap)))
    scores = evaluation.scores
    table.add_row("mean", "", *(_percent(value) for value in (scores.ap50, scores.voc07, scores.map)))
    results.print(table)
    if exact:
        lost = 100 * (exact.ap50 - scores.ap50)
        results.print(
            f"AP50 of the exact layers: {100 * exact.ap50:.1f}; --svd and --head cost {lost:.2f}", highlight=False
        )
    shares = ", ".join(_percent(share) for share in evaluation.recall.fractions)
    results.print(f"{shares} % of the objects have a proposal that overlaps by 0.5, 0.7, 0.9", highlight=False)
    return 1 if evaluation.failures else 0


def predict(model: Detector, arguments: Namespace) -> int:
    """Detect in images; a picture and a line for each; 1 if one could not be read."""
    from sppnet.detect.pictures import draw_detections
    from sppnet.detect.proposals import iter_proposals
    from sppnet.inference.results import Failure

    paths, failures = find_images(arguments.images)
    model = cheaper(model, arguments)
    least = least_shown(model, arguments)
    folder = Path(arguments.out) if arguments.out else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    override_proposals(model, arguments)
    config = model.config
    windows = iter_proposals(
        paths,
        config.proposals,
        _cache(arguments) if arguments.cache else None,
        max_windows=config.windows,
        seconds=config.proposal_seconds,
        workers=arguments.workers,
    )
    taken: dict[str, int] = {}
    for path, proposals in zip(paths, track(windows, "detecting", len(paths)), strict=True):
        if isinstance(proposals, Failure):
            failures.append(proposals.error)
            continue
        image = load_image(path)
        found = above(model.detect(image, proposals.boxes), least)
        count = taken[path.name] = taken.get(path.name, 0) + 1
        picture = folder / f"{path.name}{f'-{count}' if count > 1 else ''}.jpg" if folder else None
        if picture:
            draw_detections(image, found, config.classes).save(picture, quality=90)
        content = content_of(str(path), image, found, config.classes)
        if arguments.json:
            sys.stdout.write(json.dumps(content | ({"picture": str(picture)} if picture else {})) + "\n")
        else:
            for one in content["objects"]:
                corners = " ".join(f"{edge:.1f}" for edge in one["box"])
                sys.stdout.write(f"{path}\t{one['label']}\t{one['score']:.3f}\t{corners}\n")
    list_problems((), tuple(failures))
    return 1 if failures else 0


def least_shown(model: Detector, arguments: Namespace) -> float:
    """The least score that is told."""
    return SHOWN[model.config.scorer] if arguments.min_score is None else float(arguments.min_score)


def override_proposals(model: Detector, arguments: Namespace) -> None:
    """Take windows from elsewhere than the training did."""
    if arguments.proposals:
        model.config = dataclasses.replace(model.config, proposals=arguments.proposals)


def cheaper(model: Detector, arguments: Namespace) -> Detector:
    """The model with the layers after the pyramid that --svd and --head ask for."""
    from sppnet.detect.classic.compress import compress

    return compress(model, numbers("svd", arguments.svd) if arguments.svd else (), arguments.head)


def _cache(arguments: Namespace) -> Path:
    return (Path(arguments.cache) if arguments.cache else Path(arguments.run) / "cache") / "proposals"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
