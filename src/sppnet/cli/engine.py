"""`--engine ray`: run `sppnet predict` and `sppnet features` on a Ray cluster."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from sppnet.cli.common import collect_images, list_failures
from sppnet.cli.console import line, message
from sppnet.cli.parser import CommandParser
from sppnet.errors import ImageError
from sppnet.features.options import Dtype
from sppnet.progress import track

if TYPE_CHECKING:
    from sppnet.features.encoder import RegionEncoder
    from sppnet.features.files import Engine as RegionEngine
    from sppnet.features.files import FileTask
    from sppnet.registry import Model

Engine = Literal["local", "ray"]

SHARD = 256


def add_engine_options(parser: CommandParser) -> None:
    """Add the options of commands that can run on Ray."""
    text = "where to run: local for this process, ray for many processes or machines"
    parser.option("hardware", "--engine", text, "local", type=Engine)
    text = "--engine ray: cluster, as auto, host:port or ray://host:10001; default: start Ray on this machine"
    parser.option("hardware", "--ray-address", text, type=str | None, metavar="ADDRESS")
    text = "--engine ray: number of worker processes; default: one per GPU, or one per CPU without GPUs"
    parser.option("hardware", "--actors", text, type=int | None)


def check_engine_options(arguments: Namespace) -> None:
    """Raise ValueError for Ray options with the local engine."""
    for name, default in (("ray_address", None), ("actors", None), ("shard", SHARD)):
        if (value := arguments.get(name, default)) != default:
            raise ValueError(f"{name}: expected no value without --engine ray, got {value}")


def predict(arguments: Namespace, check: Callable[[Namespace, str], None]) -> int:
    """Predict for images on Ray and write the results to files.

    Args:
        arguments: options of `sppnet predict`.
        check: function that raises ValueError for options that the task of the run does not have.

    Returns:
        1 if an image could not be used, else 0.
    """
    from sppnet.backbones.weights import weights_digest
    from sppnet.data.listing import list_image_names
    from sppnet.distributed.jobs import PredictJob, load_remote
    from sppnet.io import remote
    from sppnet.io.part_files import Shards, parse_failure
    from sppnet.registry import TASKS

    if arguments.out is None:
        raise ValueError("out: expected a folder with --engine ray, got none; set --out DIR or --out s3://...")
    model = load_remote(arguments.run)
    task = model.config.task
    check(arguments, task)
    model, function, options = _prepare(model, arguments)
    names, failures = collect_images(arguments.images, list_image_names)
    if not names:
        list_failures(failures)
        return 1
    settings = {
        "model": TASKS[task].noun,
        "weights": weights_digest(model),
        "config": hashlib.sha256(repr(model.config).encode()).hexdigest()[:16],
    }
    parts = Shards(remote.resolve(arguments.out), names, arguments.shard, settings | options)
    todo = parts.open()
    job = PredictJob(model, function, arguments.batch, parts.folder, Path.cwd())
    tasks = [json.dumps({"file": parts.file(number), "names": parts.images(number)}) for number in todo]
    unusable: dict[int, list[tuple[str, str]]] = {}
    for number, result in track(
        _run(job, tasks, arguments), f"files of {parts.size} images", len(parts), len(parts) - len(todo)
    ):
        unusable[todo[number]] = [(name, reason) for name, reason in json.loads(result)]
    for number in range(len(parts)):
        if number not in unusable:  # written by an earlier call
            unusable[number] = [pair for text in parts.lines(number) if (pair := parse_failure(text))]
    pairs = [pair for number in sorted(unusable) for pair in unusable[number]]
    parts.close(pairs)
    if arguments.json:
        for number in range(len(parts)):
            sys.stdout.writelines(f"{text}\n" for text in parts.lines(number) if not parse_failure(text))
    else:
        line(f"{len(names) - len(pairs)} results in {len(parts)} files: {arguments.out}")
    failures += [ImageError(*pair) for pair in pairs]
    list_failures(failures)
    return 1 if failures else 0


def _prepare(model: "Model", arguments: Namespace) -> tuple["Model", Callable[..., Any], dict[str, Any]]:
    """Return the model, the function that predicts with it, and the options that determine its results."""
    from sppnet.classify.model import Classifier
    from sppnet.classify.predict import predict_images
    from sppnet.cli.detect import prediction_options
    from sppnet.detect.classic.compress import compress
    from sppnet.detect.model import Detector
    from sppnet.detect.options import is_box_file
    from sppnet.detect.two_stage.model import TwoStageDetector
    from sppnet.distributed.jobs import classify

    if isinstance(model, Classifier):
        options = {name: arguments[name] for name in ("resize", "views", "unknown", "top")}
        list(predict_images(model, [], batch=arguments.batch, **options))  # checks the options before Ray starts
        return model, partial(classify, **options), options
    if isinstance(model, TwoStageDetector):
        min_score = model.config.min_score if arguments.min_score is None else arguments.min_score
        settings = prediction_options(model, arguments, None)
        if arguments.vectors is not None:
            raise ValueError(f"vectors: expected no value with --engine ray, got {arguments.vectors}")
        options = {"min_score": min_score, "tile": arguments.tile, "overlap": arguments.overlap}
        return model, partial(TwoStageDetector.predict, min_score=min_score, on_error="skip", **settings), options
    if not isinstance(model, Detector):
        raise ValueError("engine: expected local for a segmenter, got ray; only classifiers and detectors run on Ray")
    for name, default in (("workers", 2), ("cache", None)):
        if arguments[name] != default:
            raise ValueError(f"{name}: expected no value with --engine ray, got {arguments[name]}")
    if arguments.proposals:
        model.config = dataclasses.replace(model.config, proposals=arguments.proposals)
    if is_box_file(model.config.proposals):
        raise ValueError(f"proposals: expected no box file with --engine ray, got {model.config.proposals}")
    list(model.propose([]))  # checks the source before Ray starts
    min_score = model.config.min_score if arguments.min_score is None else arguments.min_score
    options = {"min_score": min_score, "svd": arguments.svd, "head_dtype": arguments.head_dtype}
    model = compress(model, arguments.svd or (), arguments.head_dtype)
    return model, partial(Detector.predict, min_score=min_score, on_error="skip"), options


def features_engine(arguments: Namespace) -> "RegionEngine | None":
    """Return the function that computes vectors on Ray, or None for the local engine."""
    if arguments.engine == "local":
        check_engine_options(arguments)
        return None

    def compute(encoder: "RegionEncoder", files: Sequence["FileTask"], dtype: Dtype) -> Iterator[None]:
        from sppnet.distributed.jobs import FeaturesJob

        tasks = [
            json.dumps(
                {
                    "file": str(file.path),
                    "source": file.source,
                    "pieces": [(piece.name, str(piece.path), piece.boxes.tolist(), piece.ids) for piece in file.pieces],
                }
            )
            for file in files
        ]
        for number, _ in _run(FeaturesJob(encoder, dtype, Path.cwd()), tasks, arguments):
            yield from [None] * len(files[number].pieces)

    return compute


def _run(job: Any, tasks: Sequence[str], arguments: Namespace) -> Iterator[tuple[int, str]]:
    """Run the tasks on the cluster, and yield the number and the result of each."""
    from sppnet.distributed.ray_engine import cluster, run_tasks

    if not tasks:
        return
    deaths = 0
    with cluster(arguments.ray_address, arguments.actors):
        for done in run_tasks(job, tasks, arguments.actors, arguments.device):
            deaths += done.tries - 1
            yield done.task, done.result
    if deaths:
        message(f"sppnet: worker processes died {deaths} times; their images were processed again")
