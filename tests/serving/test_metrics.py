"""Prometheus metrics of the server."""

from fastapi.testclient import TestClient

from tests.helpers.web_clients import photograph, post

pytest_plugins = ("tests.helpers.web_clients",)


def test_requests_are_counted(classify: TestClient) -> None:
    def value(name: str) -> float:
        lines = classify.get("/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    names = ('sppnet_requests_total{path="/v1/predict",status="200"}', "sppnet_pixels_total", "sppnet_batch_size_count")
    before = [value(name) for name in names]
    post(classify, "/v1/predict", photograph(50, 60))
    assert [value(name) - previous for name, previous in zip(names, before, strict=True)] == [1, 3000, 1]
    classify.get("/some/other/place")
    assert value('sppnet_requests_total{path="other",status="404"}') >= 1
