"""`sppnet train detect`, and `sppnet evaluate` and `sppnet predict` for detectors."""

import dataclasses
import json
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.markup import escape
from rich.table import Table

from sppnet.cli.common import find_images, list_problems, parse_level_text, parse_numbers
from sppnet.console import console, results, track
from sppnet.data.images import load_image
from sppnet.detect.model import Detector, Method, Scorer, result_content
from sppnet.detect.options import DetectOptions
from sppnet.features.encoder import ScaleRule
from sppnet.inference.results import filter_by_score
from sppnet.ops.bins import CellRule
from sppnet.ops.reference import Reduce

METHODS = "selective-search[-fast|-quality], grid, or a comma-separated list of these"
PROPOSALS = f"{METHODS}, or a box file"
# Default score threshold for output, by scorer. The authors' demo shows SVM scores from -0.5.
DEFAULT_MIN_SCORES = {"svm": -0.5, "softmax": 0.5}


def train_parser() -> ArgumentParser:
    """Build the argument parser of `sppnet train detect`."""
    parser = ArgumentParser(
        description="Train a detector on images with boxes: SPP-net (one network pass per image), R-CNN (one pass per"
        " window) or Fast R-CNN (trains the backbone too). Ctrl-C loses no progress; --resume continues."
    )
    add, default = parser.add_argument, DetectOptions()
    add("data", help="data set in VOC or COCO layout")
    add("--config", action="config", help="YAML file with any of these options")
    add("--out", required=True, metavar="RUN", help="output folder for the model and its checkpoint")
    add("--split", type=str | None, help="split to train on; default: train, or all images without splits")
    add("--resume", action="store_true", help="continue the training in RUN, if there is one")
    add("--method", type=Method, default=default.method, help="spp (SPP-net), rcnn (R-CNN) or fast (Fast R-CNN)")
    add("--backbone", default=default.backbone, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add("--stage", type=int | None, help="feature map, 0 is the finest; default: the last map of stride 16")
    add("--weights", default=default.weights, help="weights: auto, hub (timm download), none, or a safetensors file")
    add("--levels", default="6,3,2,1", help="pyramid levels; Fast R-CNN always uses the single level 7")
    add("--scales", default="688", help="shorter sides of the images in pixels, such as 480,576,688,864,1200")
    add("--rule", type=CellRule, default=default.rule, help="mapping of boxes to cells: paper, released or roi_pool")
    add("--scale-rule", type=ScaleRule, default=default.scale_rule, help="choice of scale per box: paper or released")
    add("--reduce", type=Reduce, default=default.reduce, help="pooling within a bin: max or avg")
    add("--hidden", default="1024,1024", help="sizes of fc6 and fc7 (paper: 4096,4096), or none to omit both layers")
    add("--scorer", type=Scorer, default=default.scorer, help="scores by svm, or by softmax of the fine-tuned layer")
    add("--finetune", type=bool, default=True, help="train fc6 and fc7; false keeps their random weights")
    add("--mirror", type=bool, default=True, help="also fine-tune on mirrored images")
    add("--regression", type=bool, default=True, help="refine boxes by regression")
    add("--proposals", default=default.proposals, help=PROPOSALS)
    add("--windows", type=int, default=default.windows, help="largest number of windows per image")
    add("--proposal-seconds", type=float | None, help="soft time limit of the search per image; default: none")
    add("--epochs", type=int, default=default.epochs, help="epochs, each of --steps batches, or of all images for fast")
    add("--steps", type=int, default=default.steps, help="batches per epoch of fine-tuning")
    add("--batch", type=int, default=default.batch, help="windows per batch, a quarter of them on objects")
    add("--optimizer", default=default.optimizer, help="optimizer: adamw or sgd")
    add("--lr", type=float | None, help="peak learning rate; default: 3e-4 for adamw, 1e-2 for sgd")
    add("--weight-decay", type=float | None, help="weight decay; default: 5e-2 for adamw, 5e-4 for sgd")
    add("--precision", default=default.precision, help="precision: 32-true or bf16-mixed")
    add("--seed", type=int, default=default.seed, help="random seed")
    add("--workers", type=int, default=default.workers, help="number of images searched for proposals in parallel")
    add("--deterministic", action="store_true", help="make equal seeds give identical results on a GPU, or fail")
    add("--device", default=default.device, help="device: auto, cpu, cuda or mps")
    add("--cache", type=str | None, metavar="DIR", help="cache of proposals and features, shareable; default: RUN")
    return parser


def train(arguments: Namespace) -> int:
    """Train and return 0, or 1 if interrupted."""
    from sppnet.detect.train import train_detector

    training = train_detector(
        arguments.data, arguments.out, options_of(arguments), split=arguments.split, resume=arguments.resume
    )
    list_problems(training.problems, training.failures)
    if not training.finished:
        console.print(f"stopped; run the same command with --resume to continue {training.run}", highlight=False)
        return 1
    table = Table("part", "seconds")
    for name, seconds in training.seconds.items():
        table.add_row(name, f"{seconds:.1f}")
    results.print(table)
    results.print(f"{training.run} is ready", highlight=False, markup=False)
    return 0


def options_of(arguments: Namespace) -> DetectOptions:
    """Convert command-line options to training options."""
    names = {field.name for field in dataclasses.fields(DetectOptions)}
    values = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    values |= {
        "levels": parse_level_text(arguments.levels),
        "scales": parse_numbers("scales", arguments.scales),
        "hidden": () if arguments.hidden == "none" else parse_numbers("hidden", arguments.hidden),
    }
    return DetectOptions(**values)


def evaluate(model: Detector, arguments: Namespace) -> int:
    """Score a detector and return 0, or 1 if an image could not be read."""
    from sppnet.data.formats.detection import choose_split, read_detection
    from sppnet.detect.evaluate import evaluate_detector
    from sppnet.detect.pictures import write_mosaic
    from sppnet.evaluation.average_precision import json_content
    from sppnet.evaluation.curves import write_curves

    split = choose_split(arguments.data, arguments.split, "test", "val", "valid", "validation")
    data = read_detection(arguments.data, split, model.config.classes, more_classes=True)
    unknown = data.classes[len(model.config.classes) :]
    if not any(len(sample.boxes[~sample.difficult]) for sample in data.samples):
        raise ValueError(f"data: expected at least one object in split {split} of {data.root}, got none")
    if arguments.pictures:
        Path(arguments.pictures).mkdir(parents=True, exist_ok=True)
    if unknown:
        text = f"classes unknown to the model, whose objects count as missed: {', '.join(unknown)}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    override_proposals(model, arguments)
    exact = None
    if arguments.svd or arguments.head != "float32":
        compressed = compress_head(model, arguments)
        exact = evaluate_detector(model, data.samples, data.classes, _cache(arguments), arguments.workers).scores
        model = compressed
    evaluation = evaluate_detector(model, data.samples, data.classes, _cache(arguments), arguments.workers)
    list_problems(data.problems, evaluation.failures)
    if arguments.pictures:
        folder = Path(arguments.pictures)
        write_curves(evaluation.scores, folder)
        write_mosaic(evaluation.found, evaluation.samples, data.classes, folder)
        console.print(f"curves and mosaics written to {folder}", highlight=False, markup=False)
    content = json_content(evaluation.scores)
    content["proposal_recall"] = dict(zip(("0.5", "0.7", "0.9"), evaluation.recall.fractions, strict=True))
    if exact:
        content |= {"exact": {"ap50": exact.ap50, "map": exact.map}, "loss_ap50": exact.ap50 - evaluation.scores.ap50}
    content["failures"] = [{"path": failure.path, "reason": failure.reason} for failure in evaluation.failures]
    if arguments.json:
        sys.stdout.write(json.dumps(content) + "\n")
        return 1 if evaluation.failures else 0
    table = Table("class", "objects", "AP50", "AP50, 11 points", "AP50:95")
    scores = evaluation.scores
    for name, part in scores.per_class.items():
        table.add_row(escape(name), str(part.objects), *(_percent(value) for value in (part.ap50, part.voc07, part.ap)))
    table.add_row("mean", "", *(_percent(value) for value in (scores.ap50, scores.voc07, scores.map)))
    results.print(table)
    if exact:
        loss = 100 * (exact.ap50 - scores.ap50)
        text = f"AP50 of the exact layers: {100 * exact.ap50:.1f}; loss due to --svd and --head: {loss:.2f}"
        results.print(text, highlight=False)
    shares = ", ".join(_percent(share) for share in evaluation.recall.fractions)
    results.print(f"{shares} % of the objects have a proposal with IoU of at least 0.5, 0.7, 0.9", highlight=False)
    return 1 if evaluation.failures else 0


def predict(model: Detector, arguments: Namespace) -> int:
    """Detect objects, draw and print them per image, and return 0, or 1 if an image could not be read."""
    from sppnet.detect.pictures import draw_detections
    from sppnet.detect.proposals import iter_proposals
    from sppnet.inference.results import Failure

    paths, failures = find_images(arguments.images)
    model = compress_head(model, arguments)
    min_score = chosen_min_score(model, arguments)
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
    name_counts: dict[str, int] = {}
    for path, proposals in zip(paths, track(windows, "detecting", len(paths)), strict=True):
        if isinstance(proposals, Failure):
            failures.append(proposals.error)
            continue
        image = load_image(path)
        detections = filter_by_score(model.detect(image, proposals.boxes), min_score)
        count = name_counts[path.name] = name_counts.get(path.name, 0) + 1
        picture = folder / f"{path.name}{f'-{count}' if count > 1 else ''}.jpg" if folder else None
        if picture:
            draw_detections(image, detections, config.classes).save(picture, quality=90)
        content = result_content(str(path), image, detections, config.classes)
        if arguments.json:
            sys.stdout.write(json.dumps(content | ({"picture": str(picture)} if picture else {})) + "\n")
        else:
            for detected in content["objects"]:
                box = " ".join(f"{edge:.1f}" for edge in detected["box"])
                sys.stdout.write(f"{path}\t{detected['label']}\t{detected['score']:.3f}\t{box}\n")
    list_problems((), tuple(failures))
    return 1 if failures else 0


def chosen_min_score(model: Detector, arguments: Namespace) -> float:
    """Return the lowest score to report."""
    return DEFAULT_MIN_SCORES[model.config.scorer] if arguments.min_score is None else float(arguments.min_score)


def override_proposals(model: Detector, arguments: Namespace) -> None:
    """Apply --proposals to the configuration of the model."""
    if arguments.proposals:
        model.config = dataclasses.replace(model.config, proposals=arguments.proposals)


def compress_head(model: Detector, arguments: Namespace) -> Detector:
    """Return the model with its layers after the pyramid compressed by --svd and --head."""
    from sppnet.detect.classic.compress import compress

    return compress(model, parse_numbers("svd", arguments.svd) if arguments.svd else (), arguments.head)


def _cache(arguments: Namespace) -> Path:
    return (Path(arguments.cache) if arguments.cache else Path(arguments.run) / "cache") / "proposals"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
