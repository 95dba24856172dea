"""`sppnet serve`: serve a run over HTTP, with a web page."""

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from sppnet.backbones.backbone import Backbone, create_backbone
from sppnet.classify.model import Classifier
from sppnet.cli.common import parse_level_text
from sppnet.cli.detect import DEFAULT_MIN_SCORES, METHODS, override_proposals
from sppnet.console import console, results
from sppnet.detect.model import Detector
from sppnet.detect.proposals import is_box_file
from sppnet.devices import pick_device
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.memory import parse_memory
from sppnet.registry import IMAGENET, Model, load
from sppnet.segment.model import Segmenter
from sppnet.serving.engines import Engine, onnx_probabilities, takes_padding, torch_probabilities
from sppnet.serving.limits import Limits
from sppnet.serving.tasks import ClassifyTask, DetectTask, Kind, RegionTask, SegmentTask, Task, warm_up

_REQUIRED_MODULES = ("fastapi", "python_multipart", "prometheus_client", "uvicorn")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MAX_PADDING = 0.1
_MAX_CPU_WORKERS = 4
# On a CPU, a batch of 2 equal sizes is slightly faster than 2 passes; a batch of 8 takes 1.5 times as long as 8 passes.
_CPU_BATCH, _GPU_BATCH = 2, 16
_MIN_TOKEN_LENGTH = 16
# By default oneDNN caches 1,024 convolution primitives. If every image has a different size, that takes about 1 GB and
# saves no time. oneDNN reads the variable when it creates its first primitive.
_ONEDNN_CACHE = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def serve_parser() -> ArgumentParser:
    """Build the argument parser of `sppnet serve`."""
    parser = ArgumentParser(
        description="Serve a model over HTTP, with a web page at / and a description of the API at /openapi.json. After"
        " Ctrl-C or SIGTERM the server accepts no new requests and finishes those it has accepted."
    )
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network; with --regions also a backbone name")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all addresses of this machine")
    add("--port", type=int, default=8000, help="port to listen on; 0 for any free port")
    add("--token-file", type=str | None, metavar="FILE", help="file with a token that every request must contain")
    add("--regions", action="store_true", help="serve feature vectors of boxes instead of predictions")
    add("--levels", type=str | None, help="--regions: pyramid levels; default: those of a detector, else 6,3,2,1")
    add("--scale", type=int | None, help="--regions: shorter side in pixels; default: that of a detector, else 688")
    add("--weights", default="auto", help="--regions with a backbone: auto, hub (timm download), none, or a file")
    add("--engine", type=Engine, default="eager", help="eager, compiled (torch.compile), or onnx (CPU classifiers)")
    add("--device", default="auto", help="device: auto, cpu, cuda or mps")
    add("--workers", type=int | None, help="parallel batches; default: CPU cores up to 4, 2 on a GPU, 1 if segmenting")
    add("--batch", type=int | None, help="largest number of images per batch; default: 2 on a CPU, 16 on a GPU")
    add("--batch-wait", type=float, default=5.0, help="milliseconds to wait for requests of similar image size")
    add("--max-bytes", default="20MB", help="largest request; larger requests get status 413")
    add("--max-pixels", type=int, default=50_000_000, help="largest image area in pixels; larger images get status 422")
    add("--max-boxes", type=int, default=1000, help="largest number of boxes per request; more get status 400")
    add("--queue", type=int, default=64, help="largest number of concurrent requests; further ones get status 503")
    add("--upload-seconds", type=float, default=20.0, help="time limit for receiving a request; then status 408")
    add("--memory", default="4GB", help="segmenters: memory limit; images that need more are processed in tiles")
    add("--proposals", type=str | None, help=f"detectors: {METHODS}; default: as in training")
    return parser


def serve(arguments: Namespace) -> int:
    """Serve until interrupted and return 0."""
    missing = [name for name in _REQUIRED_MODULES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'serve needs {", ".join(missing)}: pip install "sppnet[serve]"')
    from sppnet.serving.app import Batching, Service, create_app
    from sppnet.serving.server import run_server

    os.environ.setdefault(*_ONEDNN_CACHE)
    limits = Limits(
        parse_memory(arguments.max_bytes, "max-bytes"),
        arguments.max_pixels,
        arguments.max_boxes,
        arguments.queue,
        arguments.upload_seconds,
    )
    if arguments.batch is not None and arguments.batch < 1:
        raise ValueError(f"batch: expected at least 1, got {arguments.batch}")
    if not arguments.batch_wait >= 0:
        raise ValueError(f"batch-wait: expected at least 0 milliseconds, got {arguments.batch_wait:g}")
    if not 0 <= arguments.port <= 65_535:
        raise ValueError(f"port: expected 0 to 65535, got {arguments.port}")
    token = _read_token(arguments.token_file)
    device = pick_device(arguments.device)
    with console.status(f"loading {arguments.run}"):
        model = _load(arguments).to(device)
    workers = _workers(arguments.workers, device, isinstance(model, Segmenter))
    batch = arguments.batch or (_CPU_BATCH if device.type == "cpu" else _GPU_BATCH)
    threads = max(1, _cores() // workers)
    padded = (
        device.type != "cpu"
        and arguments.engine == "eager"
        and isinstance(model, Classifier)
        and takes_padding(model.backbone)
    )
    kind, create_task = _prepare(arguments, model, limits, threads, padded)
    batching = Batching(workers, threads, arguments.batch_wait / 1000, batch, _MAX_PADDING if padded else 0.0)
    service = Service(Path(arguments.run).name or str(arguments.run), create_task, arguments.engine, limits, batching)
    if arguments.host not in _LOOPBACK and token is None:
        console.print(f"{arguments.host} accepts requests without a token; set --token-file", highlight=False)
    app = create_app(service, kind, token)
    run_server(app, service, arguments.host, arguments.port, partial(_print_url, arguments.run))
    return 0


def _print_url(run: str, url: str) -> None:
    results.print(f"serving {run} at {url}", highlight=False, soft_wrap=True, markup=False)


def _read_token(file: str | None) -> str | None:
    if file is None:
        return None
    token = Path(file).read_text(encoding="utf-8", errors="replace").strip()
    if not token.isascii() or not token.isprintable() or " " in token or len(token) < _MIN_TOKEN_LENGTH:
        expected = f"at least {_MIN_TOKEN_LENGTH} printable ASCII characters without spaces"
        raise ValueError(f"token-file: expected {expected} in {file}, got another format")
    return token


def _workers(requested: int | None, device: torch.device, segments: bool) -> int:
    if requested is not None and requested < 1:
        raise ValueError(f"workers: expected at least 1, got {requested}")
    if segments:
        # Each pass may use all the memory left below --memory, so concurrent passes would exceed the limit.
        if requested not in (None, 1):
            raise ValueError(f"workers: expected 1 for a segmenter, got {requested}; --memory is a limit for one pass")
        return 1
    return requested or (min(_cores(), _MAX_CPU_WORKERS) if device.type == "cpu" else 2)


def _cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load(arguments: Namespace) -> Model | RegionEncoder:
    """Load the model of the run, or create a region encoder from its backbone or from a named backbone."""
    for name, default in (("levels", None), ("scale", None), ("weights", "auto")):
        if not arguments.regions and arguments[name] != default:
            raise ValueError(f"{name}: expected no value without --regions, got {arguments[name]}")
    run = arguments.run
    if not arguments.regions:
        return load(run)
    options: dict[str, Any] = {"levels": parse_level_text(arguments.levels)} if arguments.levels else {}
    if arguments.scale is not None:
        options["scales"] = (arguments.scale,)
    if run != IMAGENET and not Path(run).is_dir():
        return RegionEncoder(create_backbone(run, None, arguments.weights), **options)
    if arguments.weights != "auto":
        raise ValueError(f"weights: expected no value for a run, got {arguments.weights}; {run} has its own weights")
    model = load(run)
    if isinstance(model, Detector) and isinstance(model.encoder, RegionEncoder):
        names = ("levels", "scales", "max_side", "rule", "reduce", "scale_rule")
        options = {name: getattr(model.encoder, name) for name in names} | options
    return RegionEncoder(_backbone_of(model), **options)


def _backbone_of(model: Model | RegionEncoder) -> Backbone:
    return model.encoder.backbone if isinstance(model, Detector) else model.backbone


def _prepare(
    arguments: Namespace, model: Model | RegionEncoder, limits: Limits, threads: int, padded: bool
) -> tuple[Kind, Callable[[], Task]]:
    """Return the kind of task and a function that creates the task and warms it up, which may take minutes."""
    if arguments.engine == "onnx" and (not isinstance(model, Classifier) or model.device.type != "cpu"):
        raise ValueError("engine: expected eager or compiled, got onnx; it supports classifiers on the CPU only")
    if arguments.proposals and not isinstance(model, Detector):
        raise ValueError(f"proposals: expected a detector, got another model from {arguments.run}; omit --proposals")
    backbone = _backbone_of(model)
    memory = parse_memory(arguments.memory)
    if isinstance(model, Detector):
        override_proposals(model, arguments)
        if is_box_file(model.config.proposals):
            raise ValueError(f"proposals: expected {METHODS}, got the box file {model.config.proposals}")

    def create_task() -> Task:
        if arguments.engine == "compiled":
            # Compile with the thread count of the workers, because graphs are bound to it.
            torch.set_num_threads(threads)
            backbone.compile_network()
        task: Task
        if isinstance(model, Classifier):
            onnx = arguments.engine == "onnx"
            run = onnx_probabilities(model, threads) if onnx else torch_probabilities(model, padded)
            task = ClassifyTask(model, limits, run)
        elif isinstance(model, Detector):
            task = DetectTask(model, limits, DEFAULT_MIN_SCORES[model.config.scorer])
        elif isinstance(model, Segmenter):
            task = SegmentTask(model, limits, memory)
        else:
            task = RegionTask(model, limits)
        warm_up(task)
        if arguments.engine == "compiled":
            # Requests that the graphs do not cover run in eager mode and never wait for the compiler.
            torch.compiler.set_stance("eager_on_recompile")
        return task

    kinds: dict[type, Kind] = {Classifier: "classify", Detector: "detect", Segmenter: "segment"}
    return kinds.get(type(model), "regions"), create_task
