"""`sppnet serve`: a run behind HTTP, with a page for people."""

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
from sppnet.cli.detect import PROPOSALS, SHOWN, override_proposals
from sppnet.console import console, results
from sppnet.detect.model import Detector
from sppnet.detect.proposals import is_box_file
from sppnet.devices import pick_device
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.memory import parse_memory
from sppnet.registry import IMAGENET, Model, load
from sppnet.segment.model import Segmenter
from sppnet.serving.engines import (
    Engine,
    onnx_probabilities,
    takes_padding,
    torch_probabilities,
)
from sppnet.serving.limits import Limits
from sppnet.serving.tasks import (
    ClassifyTask,
    DetectTask,
    Kind,
    RegionTask,
    SegmentTask,
    Task,
    warm_up,
)

_MODULES = ("fastapi", "python_multipart", "prometheus_client", "uvicorn")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LIKE_SIZE_WASTE = 0.1
_MOST_WORKERS = 4
# On a CPU two images of one size take a little less time together, eight half as much again as one by one.
_CPU_BATCH, _GPU_BATCH = 2, 16
_TOKEN = 16
# oneDNN keeps the plans of the last 1,024 convolutions with their memory: about a gigabyte more where every photograph
# has a size of its own, and no faster. It reads this when it makes its first.
_FEW_PRIMITIVES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def serve_parser() -> ArgumentParser:
    """Options of `sppnet serve`."""
    parser = ArgumentParser(
        description="Answer for photographs over HTTP, and on a page for people at /. The addresses are described at"
        " /openapi.json. Ctrl-C or SIGTERM: nothing new is taken, what was taken is answered."
    )
    add = parser.add_argument
    add("run", help="run folder, or imagenet for the embedded network; with --regions also the name of a backbone")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all of this machine's")
    add("--port", type=int, default=8000, help="0 for any that is free")
    add("--token-file", type=str | None, metavar="FILE", help="requests must bear the token that this file holds")
    add("--regions", action="store_true", help="serve vectors of boxes, from the maps of the run's network")
    add("--levels", type=str | None, help="--regions: levels of the pyramid; left out: 6,3,2,1, or a detector's own")
    add(
        "--scale", type=int | None, help="--regions: shorter side of the photograph; left out: 688, or a detector's own"
    )
    add("--weights", default="auto", help="--regions of a backbone: auto, hub (downloads timm's), none, or a file")
    add(
        "--engine",
        type=Engine,
        default="eager",
        help="eager, compiled (torch.compile), or onnx (classifiers, onnxruntime, CPU)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add(
        "--workers",
        type=int | None,
        help="batches answered at a time; left out: one a core, at most 4, 2 on a GPU; segmenters: 1",
    )
    add("--batch", type=int | None, help="most photographs of a batch; left out: 2 on a CPU, 16 on a GPU")
    add("--batch-wait", type=float, default=5.0, help="milliseconds that a request waits for others of like size")
    add("--max-bytes", default="20MB", help="of a request; larger ones get status 413")
    add("--max-pixels", type=int, default=50_000_000, help="of a photograph; larger ones get status 422")
    add("--max-boxes", type=int, default=1000, help="of a request; more get status 400")
    add("--queue", type=int, default=64, help="requests at a time; more get status 503")
    add("--upload-seconds", type=float, default=20.0, help="in which a request must arrive; slower ones get status 408")
    add("--memory", default="4GB", help="segmenters: a photograph that takes more in one pass is cut into tiles")
    add("--proposals", type=str | None, help=f"detectors: {PROPOSALS}; left out: as in training")
    return parser


def serve(arguments: Namespace) -> int:
    """Serve until told to stop."""
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'serve needs {", ".join(missing)}: pip install "sppnet[serve]"')
    from sppnet.serving.app import Batching, Service, create_app
    from sppnet.serving.server import run_server

    os.environ.setdefault(*_FEW_PRIMITIVES)
    limits = Limits(
        parse_memory(arguments.max_bytes, "max-bytes"),
        arguments.max_pixels,
        arguments.max_boxes,
        arguments.queue,
        arguments.upload_seconds,
    )
    if arguments.batch is not None and arguments.batch < 1:
        raise ValueError(f"batch: expected at least 1; got {arguments.batch}")
    if not arguments.batch_wait >= 0:
        raise ValueError(f"batch-wait: expected at least 0 milliseconds; got {arguments.batch_wait:g}")
    if not 0 <= arguments.port <= 65_535:
        raise ValueError(f"port: expected 0 to 65535; got {arguments.port}")
    token = _read_token(arguments.token_file)
    device = pick_device(arguments.device)
    with console.status(f"loading {arguments.run}"):
        model = _load(arguments).to(device)
    workers = _workers(arguments.workers, device, isinstance(model, Segmenter))
    most = arguments.batch or (_CPU_BATCH if device.type == "cpu" else _GPU_BATCH)
    threads = max(1, _cores() // workers)
    padded = (
        device.type != "cpu"
        and arguments.engine == "eager"
        and isinstance(model, Classifier)
        and takes_padding(model.backbone)
    )
    kind, make = _prepare(arguments, model, limits, threads, padded)
    batching = Batching(workers, threads, arguments.batch_wait / 1000, most, _LIKE_SIZE_WASTE if padded else 0.0)
    service = Service(Path(arguments.run).name or str(arguments.run), make, arguments.engine, limits, batching)
    if arguments.host not in _LOOPBACK and token is None:
        console.print(f"anyone who reaches {arguments.host} may ask; --token-file asks for a token", highlight=False)
    app = create_app(service, kind, token)
    run_server(app, service, arguments.host, arguments.port, partial(_tell, arguments.run))
    return 0


def _tell(run: str, url: str) -> None:
    results.print(f"{run} at {url}", highlight=False, soft_wrap=True, markup=False)


def _read_token(file: str | None) -> str | None:
    if file is None:
        return None
    token = Path(file).read_text(encoding="utf-8", errors="replace").strip()
    if not token.isascii() or not token.isprintable() or " " in token or len(token) < _TOKEN:
        raise ValueError(f"token-file: expected {_TOKEN} or more printable ASCII characters without spaces in {file}")
    return token


def _workers(asked: int | None, device: torch.device, segments: bool) -> int:
    if asked is not None and asked < 1:
        raise ValueError(f"workers: expected at least 1; got {asked}")
    if segments:
        # What a pass may take is what --memory leaves of what is held, which several would each take for theirs.
        if asked not in (None, 1):
            raise ValueError(f"workers: a segmenter has 1, with all cores, so that --memory holds; got {asked}")
        return 1
    return asked or (min(_cores(), _MOST_WORKERS) if device.type == "cpu" else 2)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load(arguments: Namespace) -> Model | RegionEncoder:
    """The run's model; with --regions an encoder of its network's maps, or of a network's by its name."""
    for name, default in (("levels", None), ("scale", None), ("weights", "auto")):
        if not arguments.regions and arguments[name] != default:
            raise ValueError(f"{name}: an option of --regions; a run has its own")
    run = arguments.run
    if not arguments.regions:
        return load(run)
    asked: dict[str, Any] = {"levels": parse_level_text(arguments.levels)} if arguments.levels else {}
    if arguments.scale is not None:
        asked["scales"] = (arguments.scale,)
    if run != IMAGENET and not Path(run).is_dir():
        return RegionEncoder(create_backbone(run, None, arguments.weights), **asked)
    if arguments.weights != "auto":
        raise ValueError(f"weights: {run} is a run, which has its own; leave --weights out")
    model = load(run)
    if isinstance(model, Detector) and isinstance(model.encoder, RegionEncoder):
        names = ("levels", "scales", "max_side", "rule", "reduce", "scale_rule")
        asked = {name: getattr(model.encoder, name) for name in names} | asked
    return RegionEncoder(_backbone_of(model), **asked)


def _backbone_of(model: Model | RegionEncoder) -> Backbone:
    return model.encoder.backbone if isinstance(model, Detector) else model.backbone


def _prepare(
    arguments: Namespace, model: Model | RegionEncoder, limits: Limits, threads: int, padded: bool
) -> tuple[Kind, Callable[[], Task]]:
    """The task's name, and what makes it ready; that may take minutes."""
    if arguments.engine == "onnx" and (not isinstance(model, Classifier) or model.device.type != "cpu"):
        raise ValueError("engine: onnx is for classifiers on the CPU; take eager or compiled")
    if arguments.proposals and not isinstance(model, Detector):
        raise ValueError(f"proposals: an option for detectors; {arguments.run} holds none")
    backbone = _backbone_of(model)
    memory = parse_memory(arguments.memory)
    if isinstance(model, Detector):
        override_proposals(model, arguments)
        if is_box_file(model.config.proposals):
            raise ValueError(
                f"proposals: {model.config.proposals} has the boxes of known images; take selective-search"
            )

    def make() -> Task:
        if arguments.engine == "compiled":
            # As the workers do: torch uses a graph with as many threads as it was made with.
            torch.set_num_threads(threads)
            backbone.compile_network()
        task: Task
        if isinstance(model, Classifier):
            onnx = arguments.engine == "onnx"
            run = onnx_probabilities(model, threads) if onnx else torch_probabilities(model, padded)
            task = ClassifyTask(model, limits, run)
        elif isinstance(model, Detector):
            task = DetectTask(model, limits, SHOWN[model.config.scorer])
        elif isinstance(model, Segmenter):
            task = SegmentTask(model, limits, memory)
        else:
            task = RegionTask(model, limits)
        warm_up(task)
        if arguments.engine == "compiled":
            # No request waits for a compiler: what these graphs do not cover is computed without one.
            torch.compiler.set_stance("eager_on_recompile")
        return task

    kinds: dict[type, Kind] = {Classifier: "classify", Detector: "detect", Segmenter: "segment"}
    return kinds.get(type(model), "regions"), make
