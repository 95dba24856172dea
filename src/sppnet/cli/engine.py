"""`sppnet predict --engine ray`: options, and what a worker does with each task's images."""

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
from sppnet.cli.common import collect_images, complain, list_failures
from sppnet.console import results, track
from sppnet.data.listing import image_names
from sppnet.detect.proposals import is_box_file
from sppnet.distributed.jobs import (
    Answers,
    FeaturesJob,
    PredictJob,
    Sources,
    classify_images,
    detect_images,
    load_run,
)
from sppnet.distributed.ray_engine import cluster, run_tasks
from sppnet.errors import ImageError
from sppnet.features.encoder import RegionEncoder
from sppnet.features.files import Dtype, FileTask
from sppnet.features.files import Engine as RegionEngine
from sppnet.io import remote
from sppnet.io.part_files import Parts, failure_of
from sppnet.registry import Model
from sppnet.segment.model import Segmenter

Engine = Literal["local", "ray"]

SHARD = 256
_ADDRESS = "ray: cluster to connect to: auto, host:port or ray://host:10001; left out: one is started on this machine"
_ACTORS = "ray: processes that answer; left out: one a GPU, or one a CPU where there is none"


def add_engine_options(parser: ArgumentParser) -> None:
    """Options of all commands that run on Ray."""
    add = parser.add_argument
    add("--engine", type=Engine, default="local", help="local, or ray: many processes or machines, see docs/scale.md")
    add("--ray-address", type=str | None, metavar="ADDRESS", help=_ADDRESS)
    add("--actors", type=int | None, help=_ACTORS)


def refuse_engine_options(arguments: Namespace) -> None:
    """The options above mean nothing to the local engine."""
    for name, default in (("ray_address", None), ("actors", None), ("shard", SHARD)):
        if arguments.get(name, default) != default:
            raise ValueError(f"{name.replace('_', '-')}: an option of --engine ray")


def predict(arguments: Namespace, refuse: Callable[[Namespace, type], None]) -> int:
    """Answer for images on Ray, into files; 1 if an image could not be read."""
    if arguments.out is None:
        raise ValueError("out: --engine ray writes its answers into a folder; name it with --out DIR or s3://...")
    model = load_run(arguments.run)
    refuse(arguments, type(model))
    model, answer, options = _question(model, arguments)
    names, failures = collect_images(arguments.images, image_names)
    if not names:
        list_failures(failures, ())
        return 1
    settings = {
        "model": type(model).__name__.lower(),
        "weights": weights_digest(model),
        "config": hashlib.sha256(repr(model.config).encode()).hexdigest()[:16],
    }
    parts = Parts(remote.place(arguments.out), names, arguments.shard, settings | options)
    todo = parts.open()
    tasks = [json.dumps({"file": parts.file(number), "names": parts.images(number)}) for number in todo]
    unread: dict[int, list[tuple[str, str]]] = {}
    if tasks:
        job = PredictJob(model, answer, parts.folder, Path.cwd())
        died = 0
        with cluster(arguments.ray_address, arguments.actors):
            finished = run_tasks(job, tasks, arguments.actors, arguments.device)
            for done in track(finished, f"files of {parts.size} images", len(parts), len(parts) - len(todo)):
                unread[todo[done.task]] = [(name, reason) for name, reason in json.loads(done.result)]
                died += done.tries - 1
        _tell_deaths(died)
    for number in range(len(parts)):
        if number not in unread:  # an earlier call's
            unread[number] = [pair for line in parts.lines(number) if (pair := failure_of(line))]
    pairs = [pair for number in sorted(unread) for pair in unread[number]]
    parts.close(pairs)
    if arguments.json:
        for number in range(len(parts)):
            sys.stdout.writelines(f"{line}\n" for line in parts.lines(number) if not failure_of(line))
    else:
        text = f"{len(names) - len(pairs)} answers in {len(parts)} files: {arguments.out}"
        results.print(text, highlight=False, soft_wrap=True, markup=False)
    failures += [ImageError(*pair) for pair in pairs]
    list_failures(failures, ())
    return 1 if failures else 0


def _question(model: Model, arguments: Namespace) -> tuple[Model, Callable[[Any, Sources], Answers], dict[str, Any]]:
    """The model that answers, what it is asked, and the options that the answers depend on."""
    if isinstance(model, Segmenter):
        raise ValueError("engine: ray labels no pixels yet; leave --engine out for a segmenter")
    if isinstance(model, Classifier):
        options = {"resize": arguments.resize, "views": arguments.views}
        classify = partial(classify_images, batch=arguments.batch, **options)
        for _ in predict_images(model, [], batch=arguments.batch, **options):  # what is wrong is told before Ray starts
            pass
        return model, classify, options
    for name, default in (("workers", 2), ("cache", None)):
        if arguments[name] != default:
            raise ValueError(f"{name}: an option of --engine local; ray searches each image anew, --actors at a time")
    detect.override_proposals(model, arguments)
    if is_box_file(model.config.proposals):
        sources = detect.PROPOSALS.rpartition(", several")[0]
        raise ValueError(f"proposals: --engine ray takes {sources}; it reads no file yet; got {model.config.proposals}")
    least = detect.least_shown(model, arguments)
    options = {"min_score": least, "svd": arguments.svd, "head": arguments.head}
    return detect.cheaper(model, arguments), partial(detect_images, least=least), options


def features_engine(arguments: Namespace) -> RegionEngine | None:
    """What computes vectors, by what was typed; None for this process alone."""
    if arguments.engine == "local":
        refuse_engine_options(arguments)
        return None

    def compute(encoder: RegionEncoder, files: Sequence[FileTask], dtype: Dtype) -> Iterator[None]:
        if not files:
            return
        tasks = [
            json.dumps(
                {
                    "file": str(file.path),
                    "source": file.source,
                    "pieces": [(one.name, str(one.path), one.boxes.tolist(), one.ids) for one in file.pieces],
                }
            )
            for file in files
        ]
        job = FeaturesJob(encoder, dtype, Path.cwd())
        with cluster(arguments.ray_address, arguments.actors):
            died = 0
            for done in run_tasks(job, tasks, arguments.actors, arguments.device):
                died += done.tries - 1
                yield from [None] * len(files[done.task].pieces)
        _tell_deaths(died)

    return compute


def _tell_deaths(died: int) -> None:
    if died:
        complain(f"processes died {died} times; their images were done again")
