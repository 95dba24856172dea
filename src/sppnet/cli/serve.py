"""`sppnet serve`: serve a run over HTTP, with a web page."""

import logging
import os
from pathlib import Path

from jsonargparse import Namespace

from sppnet.cli.console import line
from sppnet.cli.parser import CommandParser, levels, numbers, optional, options_of
from sppnet.serving.limits import Limits, Runtime

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MIN_TOKEN_LENGTH = 16
# By default oneDNN caches 1,024 convolution primitives. If every image has a different size, that takes about 1 GB and
# saves no time. oneDNN reads the variable when it creates its first primitive.
_ONEDNN_CACHE = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
_log = logging.getLogger(__name__)


def serve_parser() -> CommandParser:
    """Build the argument parser of `sppnet serve`."""
    parser = CommandParser(
        "serve",
        "Serve a model over HTTP, with a web page at / and a description of the API at /openapi.json. After Ctrl-C or"
        " SIGTERM the server accepts no new requests and finishes those it has accepted; a second Ctrl-C stops it at"
        " once.",
    )
    add = parser.option
    add("model", "run", "run folder, or imagenet for the embedded network; with --regions also a backbone name")
    add("model", "--proposals", "detectors: proposal sources, as for predict; default: as in training", type=str | None)
    add("regions", "--regions", "serve feature vectors of boxes instead of predictions", False, action="store_true")
    text = "pyramid levels; default: those of the run, else 6,3,2,1"
    add("regions", "--levels", text, type=optional(levels))
    text = "shorter sides of the network input in pixels; default: those of the run, else 688"
    add("regions", "--scales", text, type=optional(numbers()))
    text = "weights of a backbone: auto, hub (timm download), none, or a file; default: auto"
    add("regions", "--weights", text, type=str | None)
    add("address", "--host", "address to listen on; 0.0.0.0 for all addresses of this machine", "127.0.0.1")
    add("address", "--port", "port to listen on; 0 for any free port", 8000, type=int)
    text = "file with a token that every request under /v1 must contain"
    add("address", "--token-file", text, type=str | None, metavar="FILE")
    add("limits", "--max-bytes", "largest request; larger ones get status 413", "20MB")
    parser.fields(
        "limits",
        Limits(),
        max_image_pixels="largest area of an image in pixels; larger ones get status 422",
        max_boxes="largest number of boxes per request; more get status 400",
        queue="largest number of concurrent requests; further ones get status 503",
        upload_seconds="time limit for receiving a request, and for a client that reads nothing of its response",
    )
    text = "memory limit of a segmenter, which processes larger images in tiles"
    add("hardware", "--memory", text, "4GB")
    text = "what computes: PyTorch, torch.compile, or ONNX Runtime (classifiers on the CPU)"
    add("hardware", "--runtime", text, "eager", type=Runtime)
    add("hardware", "--device", "auto, cpu, cuda or mps", "auto")
    text = "parallel batches; default: CPU cores up to 4, 2 on a GPU, 1 if segmenting"
    add("hardware", "--workers", text, type=int | None)
    text = "largest number of images per batch; default: 2 on a CPU, 16 on a GPU"
    add("hardware", "--batch", text, type=int | None)
    add("hardware", "--batch-wait", "milliseconds to wait for requests of similar image size", 5.0, type=float)
    return parser


def serve(arguments: Namespace) -> int:
    """Serve until interrupted and return 0."""
    from sppnet.devices import pick_device
    from sppnet.inference.memory import parse_memory
    from sppnet.serving.app import create_app
    from sppnet.serving.server import run_server
    from sppnet.serving.start import create_service, load_model

    os.environ.setdefault(*_ONEDNN_CACHE)
    if not 0 <= arguments.port <= 65_535:
        raise ValueError(f"port: expected 0 to 65535, got {arguments.port}")
    arguments.max_bytes = parse_memory(arguments.max_bytes, "max_bytes")
    limits, memory = options_of(Limits, arguments), parse_memory(arguments.memory)
    token = _read_token(arguments.token_file)
    device = pick_device(arguments.device)
    options = {name: arguments[name] for name in ("levels", "scales", "weights")}
    model = load_model(arguments.run, arguments.regions, **options).to(device)
    options = {name: arguments[name] for name in ("runtime", "workers", "batch", "batch_wait", "proposals")}
    name = Path(arguments.run).name or arguments.run
    service = create_service(model, name, limits=limits, memory=memory, **options)
    if arguments.host not in _LOOPBACK and token is None:
        _log.warning("%s accepts requests without a token; set --token-file", arguments.host)
    app = create_app(service, token)
    run_server(app, service, arguments.host, arguments.port, lambda url: line(f"serving {arguments.run} at {url}"))
    return 0


def _read_token(file: str | None) -> str | None:
    if file is None:
        return None
    token = Path(file).read_text(encoding="utf-8", errors="replace").strip()
    if not token.isascii() or not token.isprintable() or " " in token or len(token) < _MIN_TOKEN_LENGTH:
        expected = f"at least {_MIN_TOKEN_LENGTH} printable ASCII characters without spaces"
        raise ValueError(f"token_file: expected {expected} in {file}, got another format")
    return token
