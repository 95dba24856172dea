"""Checks before a request reaches the application: token, queue and upload size; and internal errors."""

import threading
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sppnet.classify.model import Classifier
from sppnet.serving.app import Batching
from sppnet.serving.runtimes import torch_probabilities
from sppnet.serving.tasks import ClassifyTask
from tests.helpers.polling import TIMEOUT, wait_until
from tests.helpers.web_clients import LIMITS, client, photograph, post, refusal, wait_ready

pytest_plugins = ("tests.helpers.web_clients",)


def test_rejects_too_large_requests(classify: TestClient) -> None:
    message = refusal(post(classify, "/v1/predict", b"x" * 300_000), 413, "too_many_bytes")
    assert message.startswith("request: expected at most 200000 bytes, got 300")


def test_rejects_requests_while_the_queue_is_full(classifier: Classifier) -> None:
    entered, release = threading.Semaphore(0), threading.Event()

    def wait_and_run(images: Any) -> Any:
        entered.release()
        assert release.wait(TIMEOUT)
        return torch_probabilities(classifier)(images)

    with client(ClassifyTask(classifier, LIMITS, wait_and_run), batching=Batching(most=1)) as web:
        wait_ready(web)
        responses: list[Any] = []
        threads = [threading.Thread(target=lambda: responses.append(post(web, "/v1/predict"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert entered.acquire(timeout=TIMEOUT)
        wait_until(lambda: "sppnet_requests_taken 4.0" in web.get("/metrics").text)
        fifth = post(web, "/v1/predict")
        assert "4 requests are already in progress" in refusal(fifth, 503, "queue_full")
        assert fifth.headers["retry-after"] == "1"
        assert [web.get(path).status_code for path in ("/health", "/ready", "/v1/model")] == [200] * 3
        release.set()
        for thread in threads:
            thread.join()
        assert [response.status_code for response in responses] == [200] * 4
        assert post(web, "/v1/predict").status_code == 200
        assert "sppnet_requests_taken 0.0" in web.get("/metrics").text


def test_api_requires_the_token(classifier: Classifier) -> None:
    token = "a-long-secret-token"
    with client(ClassifyTask(classifier, LIMITS, torch_probabilities(classifier)), token=token) as web:
        wait_ready(web)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}):
            response = web.get("/v1/model", headers=headers)
            assert "expected the header Authorization: Bearer TOKEN" in refusal(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
            refusal(web.post("/v1/predict", files={"image": photograph()}, headers=headers), 401, "unauthorized")
        assert web.get("/v1/model", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert web.get("/health").status_code == web.get("/").status_code == 200


def test_internal_errors_are_logged_but_not_disclosed(classifier: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("the secret is 42")

    with client(ClassifyTask(classifier, LIMITS, fail)) as web:
        wait_ready(web)
        assert "42" not in refusal(post(web, "/v1/predict"), 500, "internal")
        assert caplog.text.count("RuntimeError: the secret is 42") == 1
        assert 'sppnet_requests_total{path="/v1/predict",status="500"} 1.0' in web.get("/metrics").text
        assert web.get("/health").status_code == 200
