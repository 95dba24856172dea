"""HTTP application: routes, form fields, responses and the web page."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from sppnet import __version__
from sppnet.errors import ImageError
from sppnet.serving import schema
from sppnet.serving.batcher import Batcher
from sppnet.serving.forms import add_error_handlers, forbid_extra_fields, reject_unknown_fields
from sppnet.serving.limits import Limits, Refusal, Runtime
from sppnet.serving.memory import bound_memory
from sppnet.serving.metrics import Metrics
from sppnet.serving.middleware import RequestMiddleware
from sppnet.serving.tasks import Task
from sppnet.serving.uploads import Encoded, Upload, answer_uploads, upload_name

_PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_PATHS = ("/", "/health", "/ready", "/metrics", "/v1/model", "/v1/predict", "/v1/explain", "/v1/features")
_COMMON = ("bad_request", "unauthorized", "slow_upload", "too_many_bytes", "not_an_image", "too_many_pixels")
_PROBLEMS = schema.problems(*_COMMON, "bad_option", "too_small", "internal", "queue_full", "not_ready")
_BOX_PROBLEMS = schema.problems(
    *_COMMON, "bad_option", "bad_boxes", "too_many_boxes", "internal", "queue_full", "not_ready"
)
_log = logging.getLogger(__name__)

Photograph = Annotated[UploadFile, File(description="image file of any format and size")]
SizePolicy = Annotated[
    str | None, Form(description="network input size, such as native or warp:224; default: the model's")
]


@dataclass(frozen=True)
class Batching:
    """Batching options; see :class:`sppnet.serving.batcher.Batcher`."""

    workers: int = 1
    threads: int = 1
    wait: float = 0.005
    most: int = 8
    waste: float = 0.0


class Service:
    """A task with its queue and metrics.

    Args:
        name: display name of the model.
        kind: kind of task, which determines the routes.
        make: function that creates the task, and compiles and warms it up where required. It runs once, while the
            server already answers other requests with `not_ready`.
        runtime: runtime that the task uses.
        limits: request limits.
        batching: batching options.

    Attributes:
        made: event, set once the task is created or its creation has failed.
        error: exception that `make` raised.
        checks: semaphore that bounds the number of concurrent upload checks.
    """

    def __init__(
        self, name: str, kind: str, make: Callable[[], Task], runtime: Runtime, limits: Limits, batching: Batching
    ) -> None:
        self.name, self.kind, self.runtime, self.limits = name, kind, runtime, limits
        self._make, self._batching = make, batching
        self._task: Task | None = None
        self._batcher: Batcher[Upload, Encoded] | None = None
        self.metrics = Metrics(lambda: self._batcher.waiting if self._batcher else 0)
        self.stopping = False
        self.made = Event()
        self._stopped = Event()
        self.checks = asyncio.Semaphore(batching.workers)
        self.error: Exception | None = None
        self.on_error: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Create the task and start the workers; on failure, set `error` and call `on_error`."""
        begin = time.monotonic()
        try:
            task = self._make()
            self._batcher = Batcher(answer_uploads, observe=self.metrics.batches.observe, **asdict(self._batching))
            Thread(target=bound_memory, args=(self._stopped,), name="memory", daemon=True).start()
            self._task = task
            _log.info("ready for requests after %.1f seconds", time.monotonic() - begin)
        except Exception as error:
            self.error = error
            self.on_error()
        finally:
            self.made.set()

    def stop(self) -> None:
        """Reject new requests and finish the accepted ones."""
        self.stopping = True
        if self._batcher:
            self._batcher.close()
        self._stopped.set()

    @property
    def task(self) -> Any:
        """Task, of the class for the kind, that answers the requests.

        Raises:
            Refusal: the task is not ready yet.
        """
        if self._task is None:
            raise Refusal("not_ready", "the model is still loading; try again in a second")
        return self._task

    def describe(self) -> dict[str, Any]:
        """Return the content of /v1/model."""
        about = {"task": self.kind, "name": self.name, "version": __version__, "runtime": self.runtime}
        return {**about, **self.task.describe(), "limits": asdict(self.limits)}

    def submit(self, upload: Upload) -> Future[Encoded]:
        """Queue an upload and return the future of its answer.

        Raises:
            Refusal: the server is shutting down.
        """
        if self._batcher is None or self.stopping:
            raise Refusal("not_ready", "the server is shutting down")
        self.metrics.pixels.inc(upload.size[0] * upload.size[1])
        return self._batcher.submit(upload, upload.key, upload.size)


def create_app(service: Service, token: str | None) -> FastAPI:
    """Create the application of a service.

    Args:
        service: service to start and stop together with the application.
        token: bearer token required by the routes under /v1; None: no token.
    """
    app = FastAPI(
        title="sppnet",
        version=__version__,
        description="Predictions for photographs of any size. The web page is at `/`.",
        docs_url=None,  # FastAPI's documentation page loads scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(service),
    )
    app.add_middleware(
        RequestMiddleware, limits=service.limits, metrics=service.metrics, token=token, paths=frozenset(_PATHS)
    )
    _add_state(app, service)
    _add_page(app)
    kinds = {"classify": _add_classify, "detect": _add_detect, "segment": _add_segment, "features": _add_features}
    kinds[service.kind](app, service)
    add_error_handlers(app)
    forbid_extra_fields(app)
    return app


def _lifespan(service: Service) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # A daemon thread: compiling takes minutes, and shutdown must not wait for it.
        Thread(target=service.start, name="start", daemon=True).start()
        yield
        await asyncio.to_thread(service.stop)

    return lifespan


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> schema.Status:
        """Report that the process is running."""
        return schema.Status(status="ok")

    @app.get("/ready", tags=["state"], responses=schema.problems("not_ready"))
    async def ready() -> schema.Status:
        """Report whether the server accepts photographs."""
        _ = service.task
        if service.stopping:
            raise Refusal("not_ready", "the server is shutting down")
        return schema.Status(status="ready")

    @app.get("/metrics", tags=["state"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Return the metrics in the Prometheus text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/model", tags=["model"], responses=schema.problems("unauthorized", "not_ready"))
    async def model() -> schema.ModelInfo:
        """Describe the model and the request limits."""
        return schema.ModelInfo.model_validate(service.describe())


def _add_page(app: FastAPI) -> None:
    files = {path.name: path for path in sorted(_PAGE.iterdir())}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return _send_file(files["index.html"])

    @app.get("/page/{name}", include_in_schema=False)
    async def page(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return _send_file(files[name])


def _send_file(path: Path) -> Response:
    return FileResponse(path, media_type=_TYPES.get(path.suffix), headers=_HEADERS | {"Cache-Control": "no-cache"})


def _add_classify(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict", tags=["model"], responses=_PROBLEMS, response_model=schema.Classes)
    async def predict(request: Request, image: Photograph, resize: SizePolicy = None) -> Response:
        """Classify a photograph."""
        return await _answer(request, service, image, lambda data: service.task.predict(data, resize))

    @app.post("/v1/explain", tags=["model"], responses=_PROBLEMS, response_model=schema.Contributions)
    async def explain(
        request: Request,
        image: Photograph,
        resize: SizePolicy = None,
        label: Annotated[str | None, Form(description="class to explain; default: the predicted one")] = None,
    ) -> Response:
        """Compute the contribution of each pyramid bin to the logit of a class."""
        return await _answer(request, service, image, lambda data: service.task.explain(data, resize, label or None))


def _add_detect(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict", tags=["model"], responses=_PROBLEMS, response_model=schema.Objects)
    async def predict(
        request: Request,
        image: Photograph,
        min_score: Annotated[
            float | None,
            Form(description="lowest score to return; default: shown_score of /v1/model", allow_inf_nan=False),
        ] = None,
    ) -> Response:
        """Detect the objects in a photograph."""
        return await _answer(request, service, image, lambda data: service.task.predict(data, min_score))

    _add_box(app, service)


def _add_segment(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict", tags=["model"], responses=_PROBLEMS, response_model=schema.Mask)
    async def predict(request: Request, image: Photograph) -> Response:
        """Predict the class of each pixel of a photograph."""
        return await _answer(request, service, image, service.task.predict)

    @app.post("/v1/explain", tags=["model"], responses=_PROBLEMS, response_model=schema.Taps)
    async def explain(request: Request, image: Photograph) -> Response:
        """Compute the share of each atrous rate's kernel taps that lie on the feature map."""
        return await _answer(request, service, image, service.task.explain)


def _add_features(app: FastAPI, service: Service) -> None:
    binary: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    }

    @app.post("/v1/features", tags=["model"], responses=_BOX_PROBLEMS | binary, response_model=schema.Vectors)
    async def features(
        request: Request,
        image: Photograph,
        boxes: Annotated[str, Form(description="JSON: [[x1, y1, x2, y2], ...] in pixels of the photograph")],
        output: Annotated[
            Literal["json", "safetensors"],
            Form(description="json, or safetensors for a file with the float16 tensor `vectors`"),
        ] = "json",
    ) -> Response:
        """Compute one feature vector for each box of a photograph."""
        return await _answer(request, service, image, lambda data: service.task.features(data, boxes, output))

    _add_box(app, service)


def _add_box(app: FastAPI, service: Service) -> None:
    @app.post("/v1/explain", tags=["model"], responses=_BOX_PROBLEMS, response_model=schema.Cells)
    async def explain(
        request: Request,
        image: Photograph,
        box: Annotated[str, Form(description="JSON: [x1, y1, x2, y2] in pixels of the photograph")],
    ) -> Response:
        """Return the feature map cells that a box pools, and its bins."""
        return await _answer(request, service, image, lambda data: service.task.explain(data, box))


async def _answer(request: Request, service: Service, image: UploadFile, check: Callable[[bytes], Upload]) -> Response:
    """Check an upload in a thread, wait for its answer, and cancel it if the client disconnects."""
    await reject_unknown_fields(request)
    data = await image.read()
    async with service.checks:
        upload = replace(await asyncio.to_thread(check, data), source=upload_name(image.filename))
    future = service.submit(upload)
    disconnect = asyncio.create_task(_cancel_on_disconnect(request, upload, future))
    try:
        answer = await asyncio.wrap_future(future)
    except ImageError as error:
        raise Refusal("not_an_image", error.reason) from error
    except asyncio.CancelledError:
        if not disconnect.done():  # the server itself is being stopped
            raise
        return Response(status_code=499)  # never read
    finally:
        disconnect.cancel()
        del future  # breaks the reference cycle of its exception, whose traceback holds this frame
    return Response(answer.body, media_type=answer.media_type)


async def _cancel_on_disconnect(request: Request, upload: Upload, future: Future[Encoded]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    upload.gone.set()
    future.cancel()
