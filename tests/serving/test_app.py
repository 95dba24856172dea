"""HTTP application: responses match the library, routes, and readiness."""

import base64
import io
import threading
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
from sppnet.detect.proposals import propose
from sppnet.features.encoder import RegionEncoder
from sppnet.segment.model import Segmenter
from sppnet.segment.views import View, segment_image
from sppnet.serving import schema
from sppnet.serving.app import Batching, Service, create_app
from sppnet.serving.engines import torch_probabilities
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
            assert answer == {
                "task": "classify",
                "label": expected.label,
                "score": expected.score,
                "top": [{"label": label, "score": score} for label, score in expected.top],
                "size": list(expected.size),
                "network_size": list(expected.network_size),
                "resize": resize or "native",
            }


def test_detection_matches_the_library(detect: TestClient, detector: Detector) -> None:
    data = photograph(120, 160)
    (expected,) = detector.predict([data])
    assert len(expected.scores)
    answer = post(detect, "/v1/predict", data).json()
    assert [item["box"] for item in answer["objects"]] == expected.boxes.tolist()
    assert [item["score"] for item in answer["objects"]] == expected.scores.tolist()
    with Image.open(io.BytesIO(data)) as image:
        windows = propose(image.convert("RGB"), "grid", max_windows=20)
    assert (answer["size"], answer["windows"]) == ([120, 160], len(windows))
    threshold = (expected.scores.max() + expected.scores.min()).item() / 2
    kept = post(detect, "/v1/predict", data, min_score=str(threshold)).json()["objects"]
    assert kept == [item for item in answer["objects"] if item["score"] >= threshold]
    assert 0 < len(kept) < len(answer["objects"])


def test_segmentation_matches_the_library(segment: TestClient, segmenter: Segmenter) -> None:
    data = photograph(70, 50)
    with Image.open(io.BytesIO(data)) as image:
        expected = segment_image(segmenter, image.convert("RGB"), View())
    answer = post(segment, "/v1/predict", data).json()
    with Image.open(io.BytesIO(base64.b64decode(answer["mask"]))) as mask:
        assert np.array_equal(np.asarray(mask), expected.numpy())
    shares = {item["label"]: item["share"] for item in answer["classes"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares.get("sky", 0) == pytest.approx((expected == 0).float().mean().item())
    assert answer["size"] == [70, 50]


def test_region_vectors_match_the_library(regions: TestClient, backbone: Backbone) -> None:
    data = photograph(120, 160)
    boxes = [[10.0, 20.0, 90.0, 80.0], [0.0, 0.0, 160.0, 120.0]]
    (expected,) = RegionEncoder(backbone, (2, 1), (120,), 300)(data, torch.tensor(boxes))
    answer = post(regions, "/v1/features", data, boxes=str(boxes)).json()
    assert answer["length"] == expected.shape[1] == 256 * 5 == regions.get("/v1/model").json()["length"]
    assert torch.equal(torch.tensor(answer["vectors"]), expected)
    file = post(regions, "/v1/features", data, boxes=str(boxes), output="safetensors")
    assert file.headers["content-type"] == "application/octet-stream"
    assert torch.equal(load_tensors(file.content)["vectors"], expected.half())
    assert post(regions, "/v1/features", data, boxes="[]").json()["vectors"] == []


def test_explanations_of_all_tasks(
    classify: TestClient, detect: TestClient, segment: TestClient, regions: TestClient, classifier: Classifier
) -> None:
    prediction = post(classify, "/v1/predict").json()
    explained = post(classify, "/v1/explain").json()
    assert explained["label"] == prediction["label"]
    assert explained["score"] == pytest.approx(prediction["score"], rel=1e-4)
    total = sum(part["contribution"] for level in explained["levels"] for part in level["bins"]) + explained["rest"]
    assert total == pytest.approx(explained["logit"], rel=1e-3, abs=1e-4)
    other = next(name for name in classifier.config.classes if name != explained["label"])
    assert post(classify, "/v1/explain", label=other).json()["label"] == other
    for web in (detect, regions):
        cells = post(web, "/v1/explain", box=BOX).json()
        left, top, right, bottom = cells["cells"]
        assert 0 <= left < right <= cells["map_size"][1]
        assert 0 <= top < bottom <= cells["map_size"][0]
    taps = post(segment, "/v1/explain").json()
    assert [item["rate"] for item in taps["rates"]] == [1, 2]


def test_models_are_described(
    classify: TestClient, detect: TestClient, segment: TestClient, regions: TestClient
) -> None:
    models = {web: web.get("/v1/model").json() for web in (classify, detect, segment, regions)}
    assert [model["task"] for model in models.values()] == ["classify", "detect", "segment", "regions"]
    assert models[classify]["classes"] == ["cat", "dog", "owl"]
    assert models[classify]["levels"] == [[3, 3], [2, 2], [1, 1]]
    assert models[classify]["resizes"] == ["native", "shorter-side:224", "square-min", "warp:224", "center-crop:224"]
    assert models[classify]["limits"] == {"bytes": 200_000, "pixels": 40_000, "boxes": 5, "queue": 4}
    assert models[detect]["shown_score"] == -0.5
    assert models[segment]["rates"] == [1, 2]
    assert models[segment]["colours"] == [[0, 0, 0], [128, 0, 0]]
    assert all(model["stride"] for model in models.values())


def test_responses_have_exactly_the_declared_fields(
    classify: TestClient, detect: TestClient, segment: TestClient, regions: TestClient
) -> None:
    responses: list[tuple[type[schema.Form], Any]] = [
        *((schema.ModelInfo, web.get("/v1/model")) for web in (classify, detect, segment, regions)),
        (schema.Classes, post(classify, "/v1/predict")),
        (schema.Contributions, post(classify, "/v1/explain")),
        (schema.Objects, post(detect, "/v1/predict")),
        (schema.Cells, post(detect, "/v1/explain", box=BOX)),
        (schema.Mask, post(segment, "/v1/predict")),
        (schema.Taps, post(segment, "/v1/explain")),
        (schema.Vectors, post(regions, "/v1/features", boxes=f"[{BOX}]")),
        (schema.Problem, post(regions, "/v1/features", boxes="no")),
    ]
    for model, response in responses:
        model.model_validate_json(response.text, strict=True)


def test_only_the_routes_of_the_task_exist(classify: TestClient, regions: TestClient) -> None:
    refusal(post(classify, "/v1/features", boxes="[]"), 404, "not_found")
    refusal(post(regions, "/v1/predict"), 404, "not_found")
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

    with TestClient(create_app(Service("run", make, "eager", LIMITS, Batching()), "classify", None)) as web:
        assert web.get("/health").status_code == 200
        for response in (web.get("/ready"), web.get("/v1/model"), post(web, "/v1/predict")):
            assert refusal(response, 503, "not_ready") == "the model is still loading; try again in a second"
        loaded.set()
        wait_ready(web)
        assert post(web, "/v1/predict").status_code == 200
