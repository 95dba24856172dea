"""HTTP application: responses match the library, routes, and readiness."""

import base64
import io
import threading
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import load as load_tensors

from sppnet.backbones.backbone import Backbone
from sppnet.classify.model import Classifier
from sppnet.detect.model import Detector
from sppnet.features.encoder import RegionEncoder
from sppnet.segment.model import Segmenter
from sppnet.segment.predict import SegmentationResult
from sppnet.serving import schema
from sppnet.serving.app import Batching, Service, create_app
from sppnet.serving.runtimes import torch_probabilities
from sppnet.serving.tasks import ClassifyTask, Task
from tests.helpers.polling import TIMEOUT
from tests.helpers.web_clients import BOX, LIMITS, photograph, post, refusal, wait_ready

pytest_plugins = ("tests.helpers.web_clients",)


def test_classification_matches_the_library(classify: TestClient, classifier: Classifier) -> None:
    for size in ((97, 131), (180, 90)):
        for resize in (None, "warp:100", "square-min", "center-crop:64"):
            data = photograph(*size)
            (expected,) = classifier.predict([data], resize=resize)
            answer = post(classify, "/v1/predict", data, **({"resize": resize} if resize else {})).json()
            assert answer == expected.to_dict() | {"source": "a.png"}


def test_detection_matches_the_library(detect: TestClient, detector: Detector) -> None:
    data = photograph(120, 160)
    (expected,) = detector.predict([data])
    answer = post(detect, "/v1/predict", data).json()
    assert answer == expected.to_dict() | {"source": "a.png"}
    scores = [item["score"] for item in answer["objects"]]
    threshold = (scores[0] + scores[-1]) / 2
    kept = post(detect, "/v1/predict", data, min_score=str(threshold)).json()["objects"]
    assert kept == [item for item in answer["objects"] if item["score"] >= threshold]
    assert 0 < len(kept) < len(scores)


def test_segmentation_matches_the_library(segment: TestClient, segmenter: Segmenter) -> None:
    data = photograph(70, 50)
    (expected,) = segmenter.predict([data])
    assert isinstance(expected, SegmentationResult)
    answer = post(segment, "/v1/predict", data).json()
    with Image.open(io.BytesIO(base64.b64decode(answer.pop("mask")))) as mask:
        assert np.array_equal(np.asarray(mask), expected.labels)
    assert answer == expected.to_dict() | {"source": "a.png"}


def test_region_vectors_match_the_library(features: TestClient, backbone: Backbone) -> None:
    data = photograph(120, 160)
    boxes = [[10.0, 20.0, 90.0, 80.0], [0.0, 0.0, 160.0, 120.0]]
    (expected,) = RegionEncoder(backbone, (2, 1), (120,), 300).predict(data, torch.tensor(boxes))
    answer = post(features, "/v1/features", data, boxes=str(boxes)).json()
    assert answer == expected.to_dict() | {"source": "a.png"}
    assert len(answer["vectors"][0]) == 256 * 5 == features.get("/v1/model").json()["length"]
    file = post(features, "/v1/features", data, boxes=str(boxes), output="safetensors")
    assert file.headers["content-type"] == "application/octet-stream"
    assert torch.equal(load_tensors(file.content)["vectors"], expected.vectors.half())
    assert post(features, "/v1/features", data, boxes="[]").json()["vectors"] == []


def test_explanations_of_all_tasks(
    classify: TestClient, detect: TestClient, segment: TestClient, features: TestClient, classifier: Classifier
) -> None:
    prediction = post(classify, "/v1/predict").json()
    explained = post(classify, "/v1/explain").json()
    assert explained["label"] == prediction["label"]
    assert explained["score"] == pytest.approx(prediction["score"], rel=1e-4)
    total = sum(part["contribution"] for level in explained["levels"] for part in level["bins"]) + explained["rest"]
    assert total == pytest.approx(explained["logit"], rel=1e-3, abs=1e-4)
    other = next(name for name in classifier.config.classes if name != explained["label"])
    assert post(classify, "/v1/explain", label=other).json()["label"] == other
    for web in (detect, features):
        cells = post(web, "/v1/explain", box=BOX).json()
        left, top, right, bottom = cells["cells"]
        assert 0 <= left < right <= cells["map_size"][1]
        assert 0 <= top < bottom <= cells["map_size"][0]
    taps = post(segment, "/v1/explain").json()
    assert [item["rate"] for item in taps["rates"]] == [1, 2]


def test_models_are_described(
    classify: TestClient, detect: TestClient, segment: TestClient, features: TestClient
) -> None:
    models = {web: web.get("/v1/model").json() for web in (classify, detect, segment, features)}
    assert [model["task"] for model in models.values()] == ["classify", "detect", "segment", "features"]
    assert models[classify]["classes"] == ["cat", "dog", "owl"]
    assert models[classify]["levels"] == [[3, 3], [2, 2], [1, 1]]
    assert models[classify]["resizes"] == ["native", "shorter-side:224", "square-min", "warp:224", "center-crop:224"]
    assert models[classify]["limits"] == asdict(LIMITS)
    assert models[detect]["shown_score"] == -0.5
    assert models[segment]["rates"] == [1, 2]
    assert models[segment]["colours"] == [[0, 0, 0], [128, 0, 0]]
    assert all(model["stride"] for model in models.values())


def test_responses_have_exactly_the_declared_fields(
    classify: TestClient, detect: TestClient, segment: TestClient, features: TestClient
) -> None:
    responses: list[tuple[type[schema.Form], Any]] = [
        *((schema.ModelInfo, web.get("/v1/model")) for web in (classify, detect, segment, features)),
        (schema.Classes, post(classify, "/v1/predict")),
        (schema.Contributions, post(classify, "/v1/explain")),
        (schema.Objects, post(detect, "/v1/predict")),
        (schema.Cells, post(detect, "/v1/explain", box=BOX)),
        (schema.Mask, post(segment, "/v1/predict")),
        (schema.Taps, post(segment, "/v1/explain")),
        (schema.Vectors, post(features, "/v1/features", boxes=f"[{BOX}]")),
        (schema.Problem, post(features, "/v1/features", boxes="no")),
    ]
    for model, response in responses:
        model.model_validate_json(response.text, strict=True)


def test_only_the_routes_of_the_task_exist(classify: TestClient, features: TestClient) -> None:
    refusal(post(classify, "/v1/features", boxes="[]"), 404, "not_found")
    refusal(post(features, "/v1/predict"), 404, "not_found")
    refusal(classify.get("/v1/predict"), 405, "bad_method")
    refusal(classify.get("/docs"), 404, "not_found")
    assert set(classify.get("/openapi.json").json()["paths"]) == {
        "/health", "/ready", "/metrics", "/v1/model", "/v1/predict", "/v1/explain",
    }  # fmt: skip


def test_rejects_requests_until_the_model_is_loaded(classifier: Classifier) -> None:
    loaded = threading.Event()

    def make() -> Task:
        assert loaded.wait(TIMEOUT)
        return ClassifyTask(classifier, LIMITS, torch_probabilities(classifier))

    with TestClient(create_app(Service("run", "classify", make, "eager", LIMITS, Batching()), None)) as web:
        assert web.get("/health").status_code == 200
        for response in (web.get("/ready"), web.get("/v1/model"), post(web, "/v1/predict")):
            assert refusal(response, 503, "not_ready") == "the model is still loading; try again in a second"
        loaded.set()
        wait_ready(web)
        assert post(web, "/v1/predict").status_code == 200
