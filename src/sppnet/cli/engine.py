"""`--engine ray`: run `sppnet predict` and `sppnet features` on a Ray cluster."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from sppnet.backbones.weights import weights_digest
from sppnet.classify.model import Classifier
from sppnet.classify.predict import predict_images
from sppnet.cli import detect
from sppnet.cli.common import collect_images, list_failures, print_error
from sppnet.console import results, track
from sppnet.data.listing import list_image_names
from sppnet.detect.proposals import is_box_file
from sppnet.distributed.jobs import (
    Answers,
    FeaturesJob,
    PredictJob,
    Sources,
    classify_images,
    detect_images,
    load_remote,
)
from sppnet.distributed.ray_engine import cluster, run_tasks
from sppnet.errors import ImageError
from sppnet.features.encoder import RegionEncoder
from sppnet.features.files import Dtype, FileTask
from sppnet.features.files import Engine as RegionEngine
from sppnet.io import remote
from sppnet.io.part_files import Shards, parse_failure
from sppnet.registry import Model
from sppnet.segment.model import Segmenter

Engine = Literal["local", "ray"]

SHARD = 256
_ENGINE = "where to run: local for this process, ray for many processes or machines (see docs/scale.md)"
_ADDRESS = "--engine ray: cluster address: auto, host:port or ray://host:10001; default: start Ray on this machine"
_ACTORS = "--engine ray: number of worker processes; default: one per GPU, or one per CPU without GPUs"


def add_engine_options(parser: ArgumentParser) -> None:
    """Add the options of commands that can run on Ray."""
    add = parser.add_argument
    add("--engine", type=Engine, default="local", help=_ENGINE)
    add("--ray-address", type=str | None, metavar="ADDRESS", help=_ADDRESS)
    add("--actors", type=int | None, help=_ACTORS)


def check_engine_options(arguments: Namespace) -> None:
    """Raise ValueError for Ray options with the local engine."""
    for name, default in (("ray_address", None), ("actors", None), ("shard", SHARD)):
        if (value := arguments.get(name, default)) != default:
            raise ValueError(f"{name.replace('_', '-')}: expected no value without --engine ray, got {value}")


def predict(arguments: Namespace, refuse: Callable[[Namespace, type], None]) -> int:
    """Predict for images on Ray and write the results to files.

    Args:
        arguments: options of `sppnet predict`.
        refuse: check that raises ValueError for options that the task of the run does not support.

    Returns:
        1 if an image could not be read, else 0.
    """
    if arguments.out is None:
        raise ValueError("out: expected a folder with --engine ray, got none; set --out DIR or --out s3://...")
    model = load_remote(arguments.run)
    refuse(arguments, type(model))
    model, predictor, options = _prepare(model, arguments)
    names, failures = collect_images(arguments.images, list_image_names)
    if not names:
        list_failures(failures, ())
        return 1
    settings = {
        "model": type(model).__name__.lower(),
        "weights": weights_digest(model),
        "config": hashlib.sha256(repr(model.config).encode()).hexdigest()[:16],
    }
    parts = Shards(remote.resolve(arguments.out), names, arguments.shard, settings | options)
    todo = parts.open()
    tasks = [json.dumps({"file": parts.file(number), "names": parts.images(number)}) for number in todo]
    unreadable: dict[int, list[tuple[str, str]]] = {}
    if tasks:
        job = PredictJob(model, predictor, parts.folder, Path.cwd())
        deaths = 0
        with cluster(arguments.ray_address, arguments.actors):
            finished = run_tasks(job, tasks, arguments.actors, arguments.device)
            for done in track(finished, f"files of {parts.size} images", len(parts), len(parts) - len(todo)):
                unreadable[todo[done.task]] = [(name, reason) for name, reason in json.loads(done.result)]
                deaths += done.tries - 1
        _report_deaths(deaths)
    for number in range(len(parts)):
        if number not in unreadable:  # written by an earlier call
            unreadable[number] = [pair for line in parts.lines(number) if (pair := parse_failure(line))]
    pairs = [pair for number in sorted(unreadable) for pair in unreadable[number]]
    parts.close(pairs)
    if arguments.json:
        for number in range(len(parts)):
            sys.stdout.writelines(f"{line}\n" for line in parts.lines(number) if not parse_failure(line))
    else:
        text = f"{len(names) - len(pairs)} results in {len(parts)} files: {arguments.out}"
        results.print(text, highlight=False, soft_wrap=True, markup=False)
    failures += [ImageError(*pair) for pair in pairs]
    list_failures(failures, ())
    return 1 if failures else 0


def _prepare(model: Model, arguments: Namespace) -> tuple[Model, Callable[[Any, Sources], Answers], dict[str, Any]]:
    """Return the model, the function that predicts with it, and the options that determine its results."""
    if isinstance(model, Segmenter):
        raise ValueError("engine: expected local for a segmenter, got ray; only classifiers and detectors run on Ray")
    if isinstance(model, Classifier):
        options = {"resize": arguments.resize, "views": arguments.views}
        classify = partial(classify_images, batch=arguments.batch, **options)
        for _ in predict_images(model, [], batch=arguments.batch, **options):  # checks the options before Ray starts
            pass
        return model, classify, options
    for name, default in (("workers", 2), ("cache", None)):
        if arguments[name] != default:
            raise ValueError(f"{name}: expected no value with --engine ray, got {arguments[name]}")
    detect.override_proposals(model, arguments)
    if is_box_file(model.config.proposals):
        raise ValueError(f"proposals: expected {detect.METHODS} with --engine ray, got {model.config.proposals}")
    min_score = detect.chosen_min_score(model, arguments)
    options = {"min_score": min_score, "svd": arguments.svd, "head": arguments.head}
    return detect.compress_head(model, arguments), partial(detect_images, least=min_score), options


def features_engine(arguments: Namespace) -> RegionEngine | None:
    """Return the function that computes vectors on Ray, or None for the local engine."""
    if arguments.engine == "local":
        check_engine_options(arguments)
        return None

    def compute(encoder: RegionEncoder, files: Sequence[FileTask], dtype: Dtype) -> Iterator[None]:
        if not files:
            return
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
        job = FeaturesJob(encoder, dtype, Path.cwd())
        with cluster(arguments.ray_address, arguments.actors):
            deaths = 0
            for done in run_tasks(job, tasks, arguments.actors, arguments.device):
                deaths += done.tries - 1
                yield from [None] * len(files[done.task].pieces)
        _report_deaths(deaths)

    return compute


def _report_deaths(deaths: int) -> None:
    if deaths:
        print_error(f"worker processes died {deaths} times; their images were processed again")
