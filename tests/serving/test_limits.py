"""The HTTP interface: refusals have their status and say what to do."""

import io
import threading
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from sppnet.classify.model import Classifier
from sppnet.serving.app import Batching, Service, create_app
from sppnet.serving.engines import torch_probabilities
from sppnet.serving.tasks import ClassifyTask, Task
from tests.helpers.web_clients import LIMITS, client, photograph, post, ready, refused

pytest_plugins = ("web_clients",)


def test_limits_have_a_status_and_a_message_each(classify: TestClient, regions: TestClient) -> None:
    message = refused(post(classify, "/v1/predict", b"x" * 300_000), 413, "too_many_bytes")
    assert message.startswith("expected at most 200000 bytes in a request; got 300")
    too_large = Image.new("1", (201, 200))
    file = io.BytesIO()
    too_large.save(file, "PNG")
    assert refused(post(classify, "/v1/predict", file.getvalue()), 422, "too_many_pixels") == (
        "expected at most 40000 pixels and sides of at most 65500; got 200 x 201 (height x width), 40200 pixels"
    )
    many = str([[0, 0, 9, 9]] * 6)
    assert refused(post(regions, "/v1/features", boxes=many), 400, "too_many_boxes") == (
        "boxes: expected at most 5; got 6"
    )
    message = refused(post(classify, "/v1/predict", photograph(9, 60)), 422, "too_small")
    assert message == "the network would see 9 x 60 pixels; it needs 31 x 31"


def test_the_queue_is_full_and_says_so(classifier: Classifier) -> None:
    entered, gate = threading.Semaphore(0), threading.Event()

    def slow(images: Any) -> Any:
        entered.release()
        assert gate.wait(20)
        return torch_probabilities(classifier)(images)

    with client(ClassifyTask(classifier, LIMITS, slow), batching=Batching(most=1)) as web:
        ready(web)
        replies: list[Any] = []
        threads = [threading.Thread(target=lambda: replies.append(post(web, "/v1/predict"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert entered.acquire(timeout=20)
        while "sppnet_requests_taken 4.0" not in web.get("/metrics").text:
            pass
        fifth = post(web, "/v1/predict")
        assert "4 requests are being answered or wait" in refused(fifth, 503, "queue_full")
        assert fifth.headers["retry-after"] == "1"
        assert (
            web.get("/health").status_code == web.get("/ready").status_code == web.get("/v1/model").status_code == 200
        )
        gate.set()
        for thread in threads:
            thread.join()
        assert [reply.status_code for reply in replies] == [200] * 4
        assert post(web, "/v1/predict").status_code == 200
        assert "sppnet_requests_taken 0.0" in web.get("/metrics").text


def test_what_is_no_image_is_named(classify: TestClient) -> None:
    assert refused(post(classify, "/v1/predict", b"a list of things"), 415, "not_an_image") == (
        "not an image: the file begins with 'a'"
    )
    assert refused(post(classify, "/v1/predict", b""), 415, "not_an_image") == "file is empty"
    assert refused(post(classify, "/v1/predict", photograph()[:-2000]), 415, "not_an_image") == "file is truncated"


def test_wrong_options_are_named(classify: TestClient, detect: TestClient, regions: TestClient) -> None:
    message = refused(post(classify, "/v1/predict", resize="squash"), 400, "bad_option")
    assert "must be one of native, shorter-side" in message
    for policy in ("warp:8192", "center-crop:1001"):
        for path in ("/v1/predict", "/v1/explain"):
            message = refused(post(classify, path, resize=policy), 400, "bad_option")
            assert f"expected at most 1000000, as of {policy.split(':')[0]}:1000" in message
    message = refused(post(classify, "/v1/explain", label="doggo"), 400, "bad_option")
    assert "label: expected one of the model's 3 classes; got 'doggo'; did you mean 'dog'?" in message
    assert "min_score" in refused(post(detect, "/v1/predict", min_score="much"), 400, "bad_request")
    assert "min_score" in refused(post(detect, "/v1/predict", min_score="nan"), 400, "bad_request")
    assert "output" in refused(post(regions, "/v1/features", boxes="[]", output="csv"), 400, "bad_request")
    assert "no field of this address; it has image, resize" in refused(
        post(classify, "/v1/predict", min_score="1"), 400, "bad_option"
    )
    assert "resize: send it as a field" in refused(post(classify, "/v1/predict?resize=native"), 400, "bad_option")
    assert refused(classify.get("/v1/predict"), 405, "bad_method") == "Method Not Allowed; expected POST"
    assert "curl -F image=@photo.jpg" in refused(classify.post("/v1/predict"), 400, "bad_request")
    assert "image" in refused(classify.post("/v1/predict", data={"image": "http://x.org/a.png"}), 400, "bad_request")


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ("no", "expected JSON such as"),
        ("[[1, 2, 3]]", "expected JSON such as"),
        ("[1, 2, 3, 4]", "expected JSON such as"),
        ('[["a", 2, 3, 4]]', "expected JSON such as"),
        ("[" * 50_000, "expected JSON such as"),
        ("[[1, 2, 3, 1e999]]", r"boxes[0]: expected finite"),
        ("[[0, 0, 9, 9], [NaN, 2, 3, 4]]", r"boxes[1]: expected finite"),
        ("[[9, 0, 9, 9]]", r"boxes[0]: expected finite"),
        ("[[500, 0, 509, 9]]", r"boxes[0]: expected finite"),
    ],
)
def test_wrong_boxes_are_named(regions: TestClient, boxes: str, message: str) -> None:
    assert message in refused(post(regions, "/v1/features", boxes=boxes), 400, "bad_boxes")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("no", "box: expected JSON such as [x1, y1, x2, y2]; got 'no'"),
        ("[1, 2, 3]", "box: expected JSON such as [x1, y1, x2, y2]; got '[1, 2, 3]'"),
        ("[[1, 2, 3, 4]]", "box: expected JSON such as"),
        ("[true, 2, 3, 4]", "box: expected JSON such as"),
        ("[9, 0, 9, 9]", "box[0]: expected finite"),
    ],
)
def test_a_wrong_box_is_named(regions: TestClient, box: str, message: str) -> None:
    assert message in refused(post(regions, "/v1/explain", box=box), 400, "bad_boxes")


def test_only_the_task_s_addresses_are_there(classify: TestClient, regions: TestClient) -> None:
    refused(post(classify, "/v1/features", boxes="[]"), 404, "not_found")
    refused(post(regions, "/v1/predict"), 404, "not_found")
    refused(classify.get("/v1/predict"), 405, "bad_method")
    refused(classify.get("/docs"), 404, "not_found")
    assert set(classify.get("/openapi.json").json()["paths"]) == {
        "/health", "/ready", "/metrics", "/v1/model", "/v1/predict", "/v1/explain",
    }  # fmt: skip


def test_a_token_is_asked_for(classifier: Classifier) -> None:
    token = "a-long-secret-token"
    with client(ClassifyTask(classifier, LIMITS, torch_probabilities(classifier)), token=token) as web:
        ready(web)
        for head in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}):
            answer = web.get("/v1/model", headers=head)
            assert "expected the header Authorization: Bearer TOKEN" in refused(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
            refused(web.post("/v1/predict", files={"image": photograph()}, headers=head), 401, "unauthorized")
        assert web.get("/v1/model", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert web.get("/health").status_code == web.get("/").status_code == 200


def test_a_server_that_is_not_ready_says_so(classifier: Classifier) -> None:
    gate = threading.Event()

    def make() -> Task:
        assert gate.wait(20)
        return ClassifyTask(classifier, LIMITS, torch_probabilities(classifier))

    with TestClient(create_app(Service("run", make, "eager", LIMITS, Batching()), "classify", None)) as web:
        assert web.get("/health").status_code == 200
        for answer in (web.get("/ready"), web.get("/v1/model"), post(web, "/v1/predict")):
            assert refused(answer, 503, "not_ready") == "the model is being made ready; try again in a second"
        gate.set()
        ready(web)
        assert post(web, "/v1/predict").status_code == 200


def test_a_failure_is_a_500_without_its_text(classifier: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("the secret is 42")

    with client(ClassifyTask(classifier, LIMITS, fail)) as web:
        ready(web)
        assert "42" not in refused(post(web, "/v1/predict"), 500, "internal")
        assert caplog.text.count("RuntimeError: the secret is 42") == 1
        assert 'sppnet_requests_total{path="/v1/predict",status="500"} 1.0' in web.get("/metrics").text
        assert web.get("/health").status_code == 200


@pytest.mark.parametrize("name", ["bytes", "pixels", "boxes", "queue"])
def test_limits_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1; got 0"):
        replace(LIMITS, **{name: 0})
    with pytest.raises(ValueError, match="upload-seconds: expected more than 0"):
        replace(LIMITS, upload_seconds=0)
