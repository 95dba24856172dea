"""Clients of the server's application in this process, with tasks on small untrained networks."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from sppnet.backbones.backbone import Backbone, create_backbone
from sppnet.classify.model import Classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.detect.model import Detector, DetectorConfig
from sppnet.features.encoder import RegionEncoder
from sppnet.segment.model import Segmenter, create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.serving.app import Batching, Service, create_app
from sppnet.serving.limits import CODES, Limits
from sppnet.serving.runtimes import torch_probabilities
from sppnet.serving.tasks import ClassifyTask, DetectTask, RegionTask, SegmentTask, Task
from tests.helpers.polling import wait_until

LIMITS = Limits(max_bytes=200_000, max_image_pixels=40_000, max_boxes=5, queue=4, upload_seconds=120)
BOX = "[10, 20, 90, 80]"


def photograph(height: int = 97, width: int = 131, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return create_backbone("zf5").eval()


@pytest.fixture(scope="module")
def classifier(backbone: Backbone) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(("cat", "dog", "owl"), backbone="zf5", levels=(3, 2, 1)), backbone).eval()


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    config = SegmenterConfig(("sky", "road"), backbone="mobilenetv2_035", width=8, rates=(1, 2), norm="group")
    return create_segmenter(config, "none").eval()


@pytest.fixture(scope="module")
def detector(backbone: Backbone) -> Detector:
    torch.manual_seed(0)
    config = DetectorConfig(("cup",), backbone="zf5", levels=(2, 1), scales=(120,), max_side=300, proposals="grid")
    return Detector(replace(config, windows=20), backbone)


def client(
    task: Task, *, limits: Limits = LIMITS, token: str | None = None, batching: Batching | None = None
) -> TestClient:
    """Return a client that starts the application on entry and stops it on exit."""
    service = Service("run", task.kind, lambda: task, "eager", limits, batching or Batching())
    return TestClient(create_app(service, token), raise_server_exceptions=False)


def wait_ready(web: TestClient) -> None:
    wait_until(lambda: web.get("/ready").status_code == 200)


@pytest.fixture(scope="module")
def classify(classifier: Classifier) -> Iterator[TestClient]:
    with client(ClassifyTask(classifier, LIMITS, torch_probabilities(classifier))) as web:
        wait_ready(web)
        yield web


@pytest.fixture(scope="module")
def detect(detector: Detector) -> Iterator[TestClient]:
    with client(DetectTask(detector, LIMITS)) as web:
        wait_ready(web)
        yield web


@pytest.fixture(scope="module")
def segment(segmenter: Segmenter) -> Iterator[TestClient]:
    with client(SegmentTask(segmenter, LIMITS, 2**35)) as web:
        wait_ready(web)
        yield web


@pytest.fixture(scope="module")
def features(backbone: Backbone) -> Iterator[TestClient]:
    with client(RegionTask(RegionEncoder(backbone, (2, 1), (120,), 300), LIMITS)) as web:
        wait_ready(web)
        yield web


def post(web: TestClient, path: str, data: bytes | None = None, **form: str) -> Any:
    return web.post(path, files={"image": ("a.png", photograph() if data is None else data)}, data=form)


def refusal(response: Any, status: int, code: str) -> str:
    """Check the status and code of an error response, and return its message."""
    content = response.json()
    assert (response.status_code, content["code"]) == (status, code), content
    assert CODES[code][0] == status
    assert set(content) == {"code", "message"}
    return str(content["message"])
