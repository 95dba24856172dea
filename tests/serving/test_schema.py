"""Requests generated from /openapi.json: responses match the description, and no request fails with a 5xx status."""

import asyncio
import threading
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
from sppnet.segment.model import create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.serving.app import Batching, Service, create_app
from sppnet.serving.limits import Limits
from sppnet.serving.runtimes import torch_probabilities
from sppnet.serving.schema import Vectors
from sppnet.serving.server import _protocol
from sppnet.serving.tasks import ClassifyTask, DetectTask, RegionTask, SegmentTask, Task
from tests.helpers.hostile_clients import PHOTOGRAPH, encoded, noise
from tests.helpers.polling import TIMEOUT, wait_until

LIMITS = Limits(max_bytes=200_000, max_image_pixels=40_000, max_boxes=5, upload_seconds=TIMEOUT)
EXAMPLES = 30
VALID: dict[str, Any] = {
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
    checks.response_schema_conformance,  # not for features: fails on tuples next to a second media type
]


def classify() -> Task:
    model = Classifier(ClassifierConfig(("cat", "dog"), backbone="zf5"), create_backbone("zf5")).eval()
    return ClassifyTask(model, LIMITS, torch_probabilities(model))


def detect() -> Task:
    config = DetectorConfig(("cup",), backbone="zf5", levels=(2, 1), scales=(120,), max_side=300, proposals="grid")
    return DetectTask(Detector(replace(config, windows=20), create_backbone("zf5")).eval(), LIMITS)


def segment() -> Task:
    config = SegmenterConfig(("sky", "road"), backbone="mobilenetv2_035", width=8, rates=(1, 2), norm="group")
    return SegmentTask(create_segmenter(config, "none").eval(), LIMITS, 2**35)


def features() -> Task:
    return RegionTask(RegionEncoder(create_backbone("zf5").eval(), (2, 1), (120,), 300), LIMITS)


TASKS: dict[str, Callable[[], Task]] = {
    "classify": classify,
    "detect": detect,
    "segment": segment,
    "features": features,
}


@contextmanager
def served(task: Task) -> Iterator[str]:
    """Run a server in a thread of this process; yields its URL."""
    service = Service("run", task.kind, lambda: task, "eager", LIMITS, Batching())
    app = create_app(service, None)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=_protocol(TIMEOUT), ws="none", log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        wait_until(lambda: server.started and service._task is not None)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.usefixtures("unchecked")
def test_responses_match_the_description(kind: str, mode: schemathesis.GenerationMode) -> None:
    torch.manual_seed(0)
    with served(TASKS[kind]()) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
        assert len(operations) == 6
        if mode is schemathesis.GenerationMode.NEGATIVE:  # requests without a form cannot be invalid
            operations = [operation for operation in operations if operation.method == "post"]
        statuses: set[tuple[str, int]] = set()
        for operation in operations:

            @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode), valid=st.booleans())
            def ask(case: Any, valid: bool) -> None:
                if valid and isinstance(case.body, dict):
                    case.body |= {name: value for name, value in VALID.items() if name in case.body}
                selected = CHECKS[:-1] if kind == "features" else CHECKS
                response = case.call_and_validate(checks=selected, timeout=TIMEOUT)
                vectors = (case.path, response.status_code) == ("/v1/features", 200)
                if vectors and case.body.get("output") != "safetensors":
                    Vectors.model_validate(response.json())
                statuses.add((case.path, response.status_code))

            ask()
        if mode is schemathesis.GenerationMode.POSITIVE:
            assert statuses >= {(operation.path, 200) for operation in operations}
        assert any(status == 400 or status == 415 for _, status in statuses)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns about damaged files
@pytest.mark.usefixtures("unchecked")
def test_damaged_image_files_are_processed_or_refused() -> None:
    """Files of all formats are truncated, and some of their bytes are changed."""
    files = [encoded(noise(40, 50), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000")]
    torch.manual_seed(0)
    with served(classify()) as url, httpx.Client(base_url=url, timeout=TIMEOUT) as web:

        @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(
            st.sampled_from(files),
            st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
            st.floats(0, 1),
        )
        def ask(file: bytes, changes: list[tuple[float, int]], kept: float) -> None:
            damaged = bytearray(file)
            for position, value in changes:  # more of them in the header, where they matter most
                damaged[int(position**4 * (len(file) - 1))] = value
            if kept < 0.5:
                del damaged[int(2 * kept * len(file)) :]
            response = web.post("/v1/predict", files={"image": bytes(damaged)})
            assert response.status_code in (200, 415, 422), response.text
            if response.status_code != 200:
                assert set(response.json()) == {"code", "message"}

        ask()
