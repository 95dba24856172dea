"""The HTTP interface: addresses, their options and answers, and the page."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from sppnet import __version__
from sppnet.errors import ImageError
from sppnet.serving import schema
from sppnet.serving.batcher import Batcher
from sppnet.serving.forms import add_errors, close_forms, refuse_strangers
from sppnet.serving.limits import Limits, Refusal
from sppnet.serving.memory import bound_memory
from sppnet.serving.metrics import Metrics
from sppnet.serving.middleware import Gate
from sppnet.serving.tasks import (
    ClassifyTask,
    DetectTask,
    Kind,
    RegionTask,
    SegmentTask,
    Task,
)
from sppnet.serving.uploads import Asked, Encoded, answer_asked

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
T = TypeVar("T", bound=Task)

Photograph = Annotated[UploadFile, File(description="the photograph's file, of any format and size")]
SizePolicy = Annotated[str | None, Form(description="size at which the network sees it, such as native or warp:224")]


@dataclass(frozen=True)
class Batching:
    """How requests share passes of the network; see :class:`sppnet.serving.batcher.Batcher`."""

    workers: int = 1
    threads: int = 1
    wait: float = 0.005
    most: int = 8
    waste: float = 0.0


class Service:
    """A task, the queue before it and its counters.

    Args:
        name: of the model, for people.
        make: gives the task, compiled and warmed up if it is to be. It runs once, while the server already answers
            that it is not ready.
        engine: what it runs on, for people.
        limits: what is taken.
        batching: how requests share passes.

    Attributes:
        made: whether the task has been made, or failed to.
        error: why it failed.
        checks: of photographs' headers at a time.
    """

    def __init__(self, name: str, make: Callable[[], Task], engine: str, limits: Limits, batching: Batching) -> None:
        self.name, self.engine, self.limits = name, engine, limits
        self._make, self._batching = make, batching
        self._task: Task | None = None
        self._batcher: Batcher[Asked, Encoded] | None = None
        self.metrics = Metrics(lambda: self._batcher.waiting if self._batcher else 0)
        self.stopping = False
        self.made = Event()
        self._stopped = Event()
        self.checks = asyncio.Semaphore(batching.workers)
        self.error: Exception | None = None
        self.on_error: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Make the task and begin to answer; what goes wrong is kept in `error`, and `on_error` is called."""
        try:
            task = self._make()
            self._batcher = Batcher(answer_asked, observe=self.metrics.batches.observe, **asdict(self._batching))
            Thread(target=bound_memory, args=(self._stopped,), name="memory", daemon=True).start()
            self._task = task
        except Exception as error:
            self.error = error
            self.on_error()
        finally:
            self.made.set()

    def stop(self) -> None:
        """Answer what was taken, and nothing more."""
        self.stopping = True
        if self._batcher:
            self._batcher.close()
        self._stopped.set()

    @property
    def task(self) -> Task:
        """The task.

        Raises:
            Refusal: it is not ready yet.
        """
        if self._task is None:
            raise Refusal("not_ready", "the model is being made ready; try again in a second")
        return self._task

    def describe(self) -> dict[str, Any]:
        """The content of /v1/model."""
        limits = {name: getattr(self.limits, name) for name in ("bytes", "pixels", "boxes", "queue")}
        about = {"name": self.name, "version": __version__, "engine": self.engine, "limits": limits}
        return about | {"task": self.task.name} | self.task.describe()

    def submit(self, asked: Asked) -> Future[Encoded]:
        """Put a request into the queue.

        Raises:
            Refusal: the server stops.
        """
        if self._batcher is None or self.stopping:
            raise Refusal("not_ready", "the server stops")
        self.metrics.pixels.inc(asked.size[0] * asked.size[1])
        return self._batcher.submit(asked, asked.key, asked.size)


def create_app(service: Service, kind: Kind, token: str | None) -> FastAPI:
    """The application for a service.

    Args:
        service: is started when the application is, and stopped with it.
        kind: name of its task, which says which addresses there are.
        token: that requests of /v1 must bear; None for none.
    """
    app = FastAPI(
        title="sppnet",
        version=__version__,
        description="Answers for photographs of any size. The page for people is at `/`.",
        docs_url=None,  # FastAPI's page of the description asks an outside host for its script
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(service),
    )
    app.add_middleware(Gate, limits=service.limits, metrics=service.metrics, token=token, paths=frozenset(_PATHS))
    _add_state(app, service)
    _add_page(app)
    {"classify": _add_classify, "detect": _add_detect, "segment": _add_segment, "regions": _add_regions}[kind](
        app, service
    )
    add_errors(app)
    close_forms(app)
    return app


def _lifespan(service: Service) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # A thread of its own, for it takes minutes where there is something to compile, and nobody who stops the server
        # waits for that.
        Thread(target=service.start, name="start", daemon=True).start()
        yield
        await asyncio.to_thread(service.stop)

    return lifespan


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> schema.Status:
        """Whether the process lives."""
        return schema.Status(status="ok")

    @app.get("/ready", tags=["state"], responses=schema.problems("not_ready"))
    async def ready() -> schema.Status:
        """Whether photographs are answered."""
        _ = service.task
        if service.stopping:
            raise Refusal("not_ready", "the server stops")
        return schema.Status(status="ready")

    @app.get("/metrics", tags=["state"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters, in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/model", tags=["model"], responses=schema.problems("unauthorized", "not_ready"))
    async def model() -> schema.ModelInfo:
        """What the model is, and what the server takes."""
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
        """The class of a photograph."""
        return await _answer(request, service, image, lambda data: _task(service, ClassifyTask).predict(data, resize))

    @app.post("/v1/explain", tags=["model"], responses=_PROBLEMS, response_model=schema.Contributions)
    async def explain(
        request: Request,
        image: Photograph,
        resize: SizePolicy = None,
        label: Annotated[str | None, Form(description="class that is explained; left out: the best one")] = None,
    ) -> Response:
        """How much each bin of the pyramid gave to a class."""
        task = _task(service, ClassifyTask)
        return await _answer(request, service, image, lambda data: task.explain(data, resize, label or None))


def _add_detect(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict", tags=["model"], responses=_PROBLEMS, response_model=schema.Objects)
    async def predict(
        request: Request,
        image: Photograph,
        min_score: Annotated[
            float | None, Form(description="least score; left out: shown_score of /v1/model", allow_inf_nan=False)
        ] = None,
    ) -> Response:
        """The objects of a photograph."""
        return await _answer(request, service, image, lambda data: _task(service, DetectTask).predict(data, min_score))

    _add_box(app, service, DetectTask)


def _add_segment(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict", tags=["model"], responses=_PROBLEMS, response_model=schema.Mask)
    async def predict(request: Request, image: Photograph) -> Response:
        """The class of each pixel of a photograph."""
        return await _answer(request, service, image, _task(service, SegmentTask).predict)

    @app.post("/v1/explain", tags=["model"], responses=_PROBLEMS, response_model=schema.Taps)
    async def explain(request: Request, image: Photograph) -> Response:
        """How much of each atrous rate lies on the photograph's map."""
        return await _answer(request, service, image, _task(service, SegmentTask).explain)


def _add_regions(app: FastAPI, service: Service) -> None:
    binary: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    }

    @app.post("/v1/features", tags=["model"], responses=_BOX_PROBLEMS | binary, response_model=schema.Vectors)
    async def features(
        request: Request,
        image: Photograph,
        boxes: Annotated[str, Form(description="JSON: [[x1, y1, x2, y2], ...] in pixels of the photograph")],
        output: Annotated[
            Literal["json", "safetensors"], Form(description="safetensors: a file with float16 `vectors`")
        ] = "json",
    ) -> Response:
        """One vector for each box of a photograph."""
        task = _task(service, RegionTask)
        return await _answer(request, service, image, lambda data: task.features(data, boxes, output))

    _add_box(app, service, RegionTask)


def _add_box(app: FastAPI, service: Service, kind: type[DetectTask] | type[RegionTask]) -> None:
    @app.post("/v1/explain", tags=["model"], responses=_BOX_PROBLEMS, response_model=schema.Cells)
    async def explain(
        request: Request,
        image: Photograph,
        box: Annotated[str, Form(description="JSON: [x1, y1, x2, y2] in pixels of the photograph")],
    ) -> Response:
        """Which cells of the feature map a box pools, and its bins."""
        return await _answer(request, service, image, lambda data: _task(service, kind).explain(data, box))


def _task(service: Service, kind: type[T]) -> T:
    task = service.task
    if not isinstance(task, kind):
        raise TypeError(f"service: expected a {kind.__name__}; got a {type(task).__name__}")
    return task


async def _answer(request: Request, service: Service, image: UploadFile, ask: Callable[[bytes], Asked]) -> Response:
    """Check a request off the event loop, wait for its answer, and take it back if the client goes away."""
    await refuse_strangers(request)
    data = await image.read()
    async with service.checks:
        asked = await asyncio.to_thread(ask, data)
    future = service.submit(asked)
    gone = asyncio.create_task(_until_gone(request, asked, future))
    try:
        answer = await asyncio.wrap_future(future)
    except ImageError as error:
        raise Refusal("not_an_image", error.reason) from error
    except asyncio.CancelledError:
        if not gone.done():  # the server itself is being ended
            raise
        return Response(status_code=499)  # nobody reads it
    finally:
        gone.cancel()
        del future  # an error of it would hold this frame, which would hold it
    return Response(answer.body, media_type=answer.media_type)


async def _until_gone(request: Request, asked: Asked, future: Future[Encoded]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    asked.gone.set()
    future.cancel()
