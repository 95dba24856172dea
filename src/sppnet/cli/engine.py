"""`sppnet predict --engine ray`: options, and what a worker does with each task's images."""

import dataclasses
import hashlib
import json
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace

from sppnet import remote
from sppnet.boxes import above
from sppnet.classify import Classifier, Prediction
from sppnet.commands import detect
from sppnet.commands.common import collect_images, complain, list_failures
from sppnet.console import results, track
from sppnet.data.images import ImageError, load_image
from sppnet.detect import Detector
from sppnet.encoder import RegionEncoder
from sppnet.engine_ray import cluster, run_tasks
from sppnet.part_files import Parts, failure_line, failure_of
from sppnet.predict import predict_images
from sppnet.proposals import is_box_file, propose
from sppnet.region_files import Dtype, FileTask, PieceTask, compute_files
from sppnet.region_files import Engine as RegionEngine
from sppnet.runs import CONFIG, WEIGHTS, Model, load, pick_device
from sppnet.segment import Segmenter
from sppnet.weights import weights_digest

Engine = Literal["local", "ray"]

SHARD = 256
_ADDRESS = "ray: cluster to connect to: auto, host:port or ray://host:10001; left out: one is started on this machine"
_ACTORS = "ray: processes that answer; left out: one a GPU, or one a CPU where there is none"
# Files of an object store that a process reads at a time, and how many images it holds that nobody has asked for yet.
_READERS, _AHEAD = 8, 16


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


def load_run(run: str) -> Model:
    """The model of a run, whose folder may be a URL."""
    if not remote.is_url(run):
        return load(run)
    with tempfile.TemporaryDirectory() as folder:
        for name in (CONFIG, WEIGHTS):
            try:
                (Path(folder) / name).write_bytes(remote.read_bytes(remote.join(run, name)))
            except FileNotFoundError as error:
                raise ValueError(f"run: expected a folder that `sppnet train` wrote; {error}") from error
        return load(folder)


# An image as load_image takes it, or why there is none; each with its name.
Source = Path | bytes | ImageError
Sources = Iterable[tuple[str, Source]]
Answers = Iterator[dict[str, Any] | ImageError]


@dataclasses.dataclass
class PredictJob:
    """Answers for the images of a part, as one file of JSON lines.

    Attributes:
        model: that answers.
        answer: what it is asked: an answer for each image, in order.
        folder: of the files.
        here: folder that names of images are relative to.
    """

    model: Model
    answer: Callable[[Any, Sources], Answers]
    folder: Path | str
    here: Path

    def start(self, device: str) -> None:
        """Move the model."""
        self.model.to(pick_device(device)).eval()

    def run(self, task: str) -> str:
        """Write a part; the failures in it, as JSON."""
        content = json.loads(task)
        lines, failures = [], []
        for name, found in zip(content["names"], self.answer(self.model, self._read(content["names"])), strict=True):
            if isinstance(found, ImageError):
                failures.append((name, found.reason))
                lines.append(failure_line(name, found.reason))
            else:
                lines.append(json.dumps(found))
        remote.write_text("".join(f"{line}\n" for line in lines), remote.join(self.folder, content["file"]))
        return json.dumps(failures)

    def _read(self, names: Sequence[str]) -> Sources:
        """The images, some of them read ahead."""
        with ThreadPoolExecutor(_READERS) as pool:
            rest = iter(names)
            ahead = deque(pool.submit(_source, name, self.here) for name in islice(rest, _AHEAD))
            for name in names:
                source = ahead.popleft().result()
                ahead.extend(pool.submit(_source, later, self.here) for later in islice(rest, 1))
                yield name, source


def _source(name: str, here: Path) -> Source:
    try:
        return remote.image_source(remote.place(name, here))
    except ImageError as error:
        return error


def classify_images(model: Classifier, sources: Sources, *, batch: int, resize: str | None, views: str) -> Answers:
    """What `sppnet predict --json` tells of each image; in batches, as the local engine has them."""
    rest = iter(sources)
    while chunk := list(islice(rest, batch)):
        good = [source for _, source in chunk if not isinstance(source, ImageError)]
        answers = predict_images(model, good, resize=resize, views=views, batch=batch)
        for name, source in chunk:
            answer = source if isinstance(source, ImageError) else next(answers)
            if isinstance(answer, Prediction):
                yield dataclasses.asdict(dataclasses.replace(answer, source=name))
            else:
                yield answer if isinstance(answer, ImageError) else answer.error


def detect_images(model: Detector, sources: Sources, *, least: float) -> Answers:
    """What `sppnet predict --json` tells of each image."""
    config = model.config
    for name, source in sources:
        try:
            if isinstance(source, ImageError):
                raise source
            image = load_image(source)
        except ImageError as error:
            yield error
            continue
        windows = propose(image, config.proposals, max_windows=config.windows, seconds=config.proposal_seconds)
        yield detect.content_of(name, image, above(model.detect(image, windows), least), config.classes)


def predict(arguments: Namespace, refuse: Callable[[Namespace, type], None]) -> int:
    """Answer for images on Ray, into files; 1 if an image could not be read."""
    if arguments.out is None:
        raise ValueError("out: --engine ray writes its answers into a folder; name it with --out DIR or s3://...")
    model = load_run(arguments.run)
    refuse(arguments, type(model))
    model, answer, options = _question(model, arguments)
    names, failures = collect_images(arguments.images, remote.image_names)
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


@dataclasses.dataclass
class FeaturesJob:
    """Vectors of the boxes of a file of images.

    Attributes:
        encoder: makes the vectors.
        dtype: of the vectors.
        here: folder that paths are relative to.
    """

    encoder: RegionEncoder
    dtype: Dtype
    here: Path

    def start(self, device: str) -> None:
        """Move the encoder."""
        self.encoder.to(pick_device(device)).eval()

    def run(self, task: str) -> str:
        """Write a file; what could not be read is in it."""
        content = json.loads(task)
        pieces = [
            PieceTask(name, remote.place(path, self.here), torch.tensor(boxes, dtype=torch.float32), ids)
            for name, path, boxes, ids in content["pieces"]
        ]
        file = FileTask(remote.place(content["file"], self.here), content["source"], pieces)
        with torch.inference_mode():
            for _ in compute_files(self.encoder, [file], self.dtype):
                pass
        return ""


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
