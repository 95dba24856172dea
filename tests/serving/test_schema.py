"""The server against its own description: requests made of /openapi.json get answers that it describes, and no 5xx."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import schemathesis
import torch
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks

from sppnet.backbones.backbone import create_backbone
from sppnet.classify.model import Classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.detect.model import Detector, DetectorConfig
from sppnet.features.encoder import RegionEncoder
from sppnet.segment.model import SegmenterConfig, create_segmenter
from sppnet.serving.app import Batching, Service, create_app
from sppnet.serving.engines import torch_probabilities
from sppnet.serving.limits import Limits
from sppnet.serving.schema import Vectors
from sppnet.serving.server import _protocol
from sppnet.serving.tasks import ClassifyTask, DetectTask, Kind, RegionTask, SegmentTask, Task
from tests.helpers.hostile_clients import PHOTOGRAPH, encoded, noise

LIMITS = Limits(bytes=200_000, pixels=40_000, boxes=5)
EXAMPLES = 30
GOOD: dict[str, Any] = {
    "image": PHOTOGRAPH,
    "boxes": "[[1, 2, 30, 40], [-9, 0, 50, 50]]",
    "box": "[1, 2, 30, 40]",
    "resize": "warp:64",
    "label": "dog",
    "min_score": 0.5,
}
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,  # it does not understand pairs beside a second media type: not for regions
]


def classify() -> Task:
    model = Classifier(ClassifierConfig(("cat", "dog"), backbone="zf5"), create_backbone("zf5")).eval()
    return ClassifyTask(model, LIMITS, torch_probabilities(model))


def detect() -> Task:
    config = DetectorConfig(("cup",), backbone="zf5", levels=(2, 1), scales=(120,), max_side=300, proposals="grid")
    return DetectTask(Detector(replace(config, windows=20), create_backbone("zf5")).eval(), LIMITS, -0.5)


def segment() -> Task:
    config = SegmenterConfig(("sky", "road"), backbone="mobilenetv2_035", width=8, rates=(1, 2), norm="group")
    return SegmentTask(create_segmenter(config, "none").eval(), LIMITS, 2**35)


def regions() -> Task:
    return RegionTask(RegionEncoder(create_backbone("zf5").eval(), (2, 1), (120,), 300), LIMITS)


TASKS: dict[Kind, Callable[[], Task]] = {
    "classify": classify,
    "detect": detect,
    "segment": segment,
    "regions": regions,
}


@contextmanager
def served(task: Task, kind: Kind) -> Iterator[str]:
    """The URL of a server in a thread of this process."""
    service = Service("run", lambda: task, "eager", LIMITS, Batching())
    app = create_app(service, kind, None)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=_protocol(20), ws="none", log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not (server.started and service._task):
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.usefixtures("unchecked")
def test_answers_are_those_that_the_description_has(kind: Kind, mode: schemathesis.GenerationMode) -> None:
    torch.manual_seed(0)
    with served(TASKS[kind](), kind) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
        assert len(operations) == 6
        if mode is schemathesis.GenerationMode.NEGATIVE:  # no request without a form can be of the wrong form
            operations = [operation for operation in operations if operation.method == "post"]
        seen: set[tuple[str, int]] = set()
        for operation in operations:

            @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode), good=st.booleans())
            def ask(case: Any, good: bool) -> None:
                if good and isinstance(case.body, dict):
                    case.body |= {name: value for name, value in GOOD.items() if name in case.body}
                answer = case.call_and_validate(checks=CHECKS[:-1] if kind == "regions" else CHECKS)
                if (case.path, answer.status_code) == ("/v1/features", 200) and case.body.get(
                    "output"
                ) != "safetensors":
                    Vectors.model_validate(answer.json())
                seen.add((case.path, answer.status_code))

            ask()
        if mode is schemathesis.GenerationMode.POSITIVE:
            assert seen >= {(operation.path, 200) for operation in operations}
        assert any(status == 400 or status == 415 for _, status in seen)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's remarks on what it reads are no errors elsewhere
@pytest.mark.usefixtures("unchecked")
def test_spoilt_photographs_are_answered_or_refused() -> None:
    """Files of all formats, cut and with bytes changed: what a decoder makes of them is no error of the server."""
    files = [encoded(noise(40, 50), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000")]
    torch.manual_seed(0)
    with served(classify(), "classify") as url, httpx.Client(base_url=url) as web:

        @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(
            st.sampled_from(files),
            st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
            st.floats(0, 1),
        )
        def ask(file: bytes, changes: list[tuple[float, int]], kept: float) -> None:
            spoilt = bytearray(file)
            for place, value in changes:  # most of them in the header, where they do most
                spoilt[int(place**4 * (len(file) - 1))] = value
            if kept < 0.5:
                del spoilt[int(2 * kept * len(file)) :]
            answer = web.post("/v1/predict", files={"image": bytes(spoilt)})
            assert answer.status_code in (200, 415, 422), answer.text
            if answer.status_code != 200:
                assert set(answer.json()) == {"code", "message"}

        ask()
