"""Validation of form fields, and error responses for invalid ones."""

from typing import Any

from fastapi.testclient import TestClient

from tests.helpers.web_clients import photograph, post, refusal

pytest_plugins = ("tests.helpers.web_clients",)


def test_rejects_invalid_options(classify: TestClient, detect: TestClient, features: TestClient) -> None:
    message = refusal(post(classify, "/v1/predict", resize="squash"), 400, "bad_option")
    assert message.startswith("resize: expected one of native, shorter-side")
    for policy in ("warp:8192", "center-crop:1001"):
        for path in ("/v1/predict", "/v1/explain"):
            message = refusal(post(classify, path, resize=policy), 400, "bad_option")
            assert message.startswith("resize: expected at most 1000000 pixels, such as warp:1000, got ")
            assert message.endswith(f" for {policy}")
    message = refusal(post(classify, "/v1/explain", label="doggo"), 400, "bad_option")
    assert "label: expected one of the model's 3 classes, got 'doggo'; did you mean dog?" in message
    assert "min_score" in refusal(post(detect, "/v1/predict", min_score="much"), 400, "bad_request")
    assert "min_score" in refusal(post(detect, "/v1/predict", min_score="nan"), 400, "bad_request")
    assert "output" in refusal(post(features, "/v1/features", boxes="[]", output="csv"), 400, "bad_request")


def test_rejects_unknown_fields_and_query_parameters(classify: TestClient) -> None:
    assert "form: expected only the fields image, resize, got 'min_score'" in refusal(
        post(classify, "/v1/predict", min_score="1"), 400, "bad_option"
    )
    assert "resize: expected a form field" in refusal(post(classify, "/v1/predict?resize=native"), 400, "bad_option")


def test_rejects_missing_files_and_other_methods(classify: TestClient) -> None:
    assert refusal(classify.get("/v1/predict"), 405, "bad_method") == "Method Not Allowed; expected POST"
    assert "curl -F image=@photo.jpg" in refusal(classify.post("/v1/predict"), 400, "bad_request")
    assert "image" in refusal(classify.post("/v1/predict", data={"image": "http://x.org/a.png"}), 400, "bad_request")


def test_rejects_repeated_fields(classify: TestClient) -> None:
    image = ("image", ("a.png", photograph(40, 60), "image/png"))
    repeated: list[tuple[list[Any], str]] = [
        ([image, image], "image"),
        ([image, ("resize", (None, "native")), ("resize", (None, "warp"))], "resize"),
    ]
    for files, name in repeated:
        message = refusal(classify.post("/v1/predict", files=files), 400, "bad_option")
        assert message == f"{name}: expected the form field once, got it 2 times"
