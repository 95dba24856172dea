"""The HTTP interface: answers are those of the library, refusals have their status and say what to do."""

import base64
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import load as load_tensors

from sppnet.backbones import Backbone, create_backbone
from sppnet.classify import Classifier, ClassifierConfig
from sppnet.detect import Detector, DetectorConfig
from sppnet.encoder import RegionEncoder
from sppnet.proposals import propose
from sppnet.segment import Segmenter, SegmenterConfig, create_segmenter
from sppnet.segment_views import label_image
from sppnet.serving import schema
from sppnet.serving.app import Batching, Service, create_app
from sppnet.serving.engines import onnx_probabilities, takes_padding, torch_probabilities
from sppnet.serving.limits import CODES, Limits
from sppnet.serving.tasks import ClassifyTask, DetectTask, Kind, RegionTask, SegmentTask, Task, warm_up
from sppnet.tile_memory import pass_bytes, resident_bytes, whole_fits

LIMITS = Limits(bytes=200_000, pixels=40_000, boxes=5, queue=4, upload_seconds=5)
BOX = "[10, 20, 90, 80]"
Ask = Callable[..., Any]


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
    """A client that enters and leaves the application, so that it is started and stopped."""
    service = Service("run", lambda: task, "eager", limits, batching or Batching())
    kinds: dict[type, Kind] = {ClassifyTask: "classify", DetectTask: "detect", SegmentTask: "segment"}
    return TestClient(create_app(service, kinds.get(type(task), "regions"), token), raise_server_exceptions=False)


def ready(web: TestClient) -> TestClient:
    while web.get("/ready").status_code != 200:
        pass
    return web


@pytest.fixture(scope="module")
def classify(classifier: Classifier) -> Iterator[TestClient]:
    with client(ClassifyTask(classifier, LIMITS, torch_probabilities(classifier))) as web:
        yield ready(web)


@pytest.fixture(scope="module")
def detect(detector: Detector) -> Iterator[TestClient]:
    with client(DetectTask(detector, LIMITS, -0.5)) as web:
        yield ready(web)


@pytest.fixture(scope="module")
def segment(segmenter: Segmenter) -> Iterator[TestClient]:
    with client(SegmentTask(segmenter, LIMITS, 2**35)) as web:
        yield ready(web)


@pytest.fixture(scope="module")
def regions(backbone: Backbone) -> Iterator[TestClient]:
    with client(RegionTask(RegionEncoder(backbone, (2, 1), (120,), 300), LIMITS)) as web:
        yield ready(web)


def post(web: TestClient, path: str, data: bytes | None = None, **form: str) -> Any:
    return web.post(path, files={"image": ("a.png", photograph() if data is None else data)}, data=form)


def refused(response: Any, status: int, code: str) -> str:
    """The message of a refusal that has this status and code."""
    content = response.json()
    assert (response.status_code, content["code"]) == (status, code), content
    assert CODES[code][0] == status
    assert set(content) == {"code", "message"}
    return str(content["message"])


def test_a_classifier_answers_what_predict_answers(classify: TestClient, classifier: Classifier) -> None:
    for size in ((97, 131), (180, 90)):
        for resize in (None, "warp:100", "square-min", "center-crop:64"):
            data = photograph(*size)
            (expected,) = classifier.predict([data], resize=resize)
            found = post(classify, "/v1/predict", data, **({"resize": resize} if resize else {})).json()
            assert found == {
                "task": "classify",
                "label": expected.label,
                "score": expected.score,
                "top": [{"label": label, "score": score} for label, score in expected.top],
                "size": list(expected.size),
                "network_size": list(expected.network_size),
                "resize": resize or "native",
            }


def test_a_detector_answers_what_predict_answers(detect: TestClient, detector: Detector) -> None:
    data = photograph(120, 160)
    (expected,) = detector.predict([data])
    assert len(expected.scores)
    found = post(detect, "/v1/predict", data).json()
    assert [one["box"] for one in found["objects"]] == expected.boxes.tolist()
    assert [one["score"] for one in found["objects"]] == expected.scores.tolist()
    with Image.open(io.BytesIO(data)) as image:
        windows = propose(image.convert("RGB"), "grid", max_windows=20)
    assert (found["size"], found["windows"]) == ([120, 160], len(windows))
    least = (expected.scores.max() + expected.scores.min()).item() / 2
    fewer = post(detect, "/v1/predict", data, min_score=str(least)).json()["objects"]
    assert fewer == [one for one in found["objects"] if one["score"] >= least]
    assert 0 < len(fewer) < len(found["objects"])


def test_a_segmenter_answers_what_label_image_answers(segment: TestClient, segmenter: Segmenter) -> None:
    from sppnet.segment_views import View

    data = photograph(70, 50)
    with Image.open(io.BytesIO(data)) as image:
        expected = label_image(segmenter, image.convert("RGB"), View())
    found = post(segment, "/v1/predict", data).json()
    with Image.open(io.BytesIO(base64.b64decode(found["mask"]))) as mask:
        assert np.array_equal(np.asarray(mask), expected.numpy())
    shares = {one["label"]: one["share"] for one in found["classes"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares.get("sky", 0) == pytest.approx((expected == 0).float().mean().item())
    assert found["size"] == [70, 50]


def test_a_photograph_that_takes_more_memory_than_there_is_gets_no_5xx(segmenter: Segmenter) -> None:
    with client(SegmentTask(segmenter, LIMITS, 10**6)) as web:
        ready(web)
        assert "memory: " in refused(post(web, "/v1/predict"), 422, "too_many_pixels")
    service = Service("run", lambda: _warmed(segmenter), "eager", LIMITS, Batching())
    service.start()
    assert isinstance(service.error, ValueError)  # which the command line tells as it tells a wrong option
    service.stop()


def _warmed(segmenter: Segmenter) -> Task:
    task = SegmentTask(segmenter, Limits(), 10**6)
    warm_up(task)
    return task


def test_segments_of_a_batch_are_those_of_one_by_one(segmenter: Segmenter) -> None:
    task = SegmentTask(segmenter, LIMITS, 2**35)
    asked = [task.predict(photograph(64, 48, seed)) for seed in range(3)]
    alone = [one.answer([one])[0] for one in asked]
    assert len({one["mask"] for one in alone}) == 3  # type: ignore[call-overload]
    assert list(asked[0].answer(asked)) == alone


def test_a_batch_of_segments_has_the_memory_of_one() -> None:
    """Else it is taken one by one."""
    segmenter = create_segmenter(SegmenterConfig(("sky", "tree"), "test_efficientnet", width=16, rates=(1, 2)), "none")
    memory = resident_bytes() + pass_bytes(segmenter, 512, 512) + 70_000_000
    assert not whole_fits(segmenter, 8 * 512, 512, memory)
    tasks = {count: SegmentTask(segmenter.eval(), Limits(), bound) for count, bound in ((8, 2**35), (1, memory))}
    for count, task in tasks.items():
        asked = [task.predict(photograph(512, 512)) for _ in range(8)]
        asked[0].answer(asked)  # counts what a pass takes
        passes: list[int] = []
        with segmenter.register_forward_pre_hook(lambda _, inputs, passes=passes: passes.append(len(inputs[0]))):
            asked[0].answer(asked)
        assert passes == [count] * (8 // count)


def test_regions_are_those_of_the_encoder(regions: TestClient, backbone: Backbone) -> None:
    data = photograph(120, 160)
    boxes = [[10.0, 20.0, 90.0, 80.0], [0.0, 0.0, 160.0, 120.0]]
    (expected,) = RegionEncoder(backbone, (2, 1), (120,), 300)(data, torch.tensor(boxes))
    found = post(regions, "/v1/features", data, boxes=str(boxes)).json()
    assert found["length"] == expected.shape[1] == 256 * 5 == regions.get("/v1/model").json()["length"]
    assert torch.equal(torch.tensor(found["vectors"]), expected)
    file = post(regions, "/v1/features", data, boxes=str(boxes), output="safetensors")
    assert file.headers["content-type"] == "application/octet-stream"
    assert torch.equal(load_tensors(file.content)["vectors"], expected.half())
    assert post(regions, "/v1/features", data, boxes="[]").json()["vectors"] == []


def test_explanations_come_over_http(
    classify: TestClient, detect: TestClient, segment: TestClient, regions: TestClient, classifier: Classifier
) -> None:
    answer = post(classify, "/v1/predict").json()
    best = post(classify, "/v1/explain").json()
    assert best["label"] == answer["label"]
    assert best["score"] == pytest.approx(answer["score"], rel=1e-4)
    total = sum(one["contribution"] for level in best["levels"] for one in level["bins"]) + best["rest"]
    assert total == pytest.approx(best["logit"], rel=1e-3, abs=1e-4)
    other = next(name for name in classifier.config.classes if name != best["label"])
    assert post(classify, "/v1/explain", label=other).json()["label"] == other
    for web in (detect, regions):
        cells = post(web, "/v1/explain", box=BOX).json()
        left, top, right, bottom = cells["cells"]
        assert 0 <= left < right <= cells["map_size"][1]
        assert 0 <= top < bottom <= cells["map_size"][0]
    taps = post(segment, "/v1/explain").json()
    assert [one["rate"] for one in taps["rates"]] == [1, 2]


def test_the_model_is_described(
    classify: TestClient, detect: TestClient, segment: TestClient, regions: TestClient
) -> None:
    told = {web: web.get("/v1/model").json() for web in (classify, detect, segment, regions)}
    assert [one["task"] for one in told.values()] == ["classify", "detect", "segment", "regions"]
    assert told[classify]["classes"] == ["cat", "dog", "owl"]
    assert told[classify]["levels"] == [[3, 3], [2, 2], [1, 1]]
    assert told[classify]["resizes"] == ["native", "shorter-side:224", "square-min", "warp:224", "center-crop:224"]
    assert told[classify]["limits"] == {"bytes": 200_000, "pixels": 40_000, "boxes": 5, "queue": 4}
    assert told[detect]["shown_score"] == -0.5
    assert told[segment]["rates"] == [1, 2]
    assert told[segment]["colours"] == [[0, 0, 0], [128, 0, 0]]
    assert all(one["stride"] for one in told.values())


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


def test_requests_are_counted(classify: TestClient) -> None:
    def count(line: str) -> float:
        lines = classify.get("/metrics").text.splitlines()
        return next((float(one.split()[-1]) for one in lines if one.startswith(line)), 0.0)

    names = ('sppnet_requests_total{path="/v1/predict",status="200"}', "sppnet_pixels_total", "sppnet_batch_size_count")
    before = [count(name) for name in names]
    post(classify, "/v1/predict", photograph(50, 60))
    assert [count(name) - one for name, one in zip(names, before, strict=True)] == [1, 3000, 1]
    classify.get("/some/other/place")
    assert count('sppnet_requests_total{path="other",status="404"}') >= 1


def test_padded_answers_are_those_of_one_by_one(classifier: Classifier) -> None:
    assert takes_padding(classifier.backbone)
    images = [Image.open(io.BytesIO(photograph(*size))) for size in ((97, 131), (120, 100), (64, 131))]
    alone = [torch_probabilities(classifier)([image])[0] for image in images]
    for one, other in zip(torch_probabilities(classifier, padded=True)(images), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_onnx_answers_are_those_of_torch(classifier: Classifier) -> None:
    answer = onnx_probabilities(classifier, threads=1)
    for size in ((97, 131), (64, 40)):
        images = [Image.open(io.BytesIO(photograph(*size, seed))) for seed in range(2)]
        for one, other in zip(answer(images), torch_probabilities(classifier)(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler about the machine
def test_compiled_answers_are_those_of_eager(classifier: Classifier) -> None:
    torch.manual_seed(0)
    other = Classifier(classifier.config, create_backbone("zf5")).eval()
    other.load_state_dict(classifier.state_dict())
    other.backbone.compile_network()
    for size in ((97, 131), (64, 40), (200, 133)):
        image = Image.open(io.BytesIO(photograph(*size)))
        for count in (1, 2):
            for one in torch_probabilities(other)([image] * count):
                torch.testing.assert_close(one, torch_probabilities(classifier)([image])[0], rtol=1e-4, atol=1e-6)


def test_every_task_warms_up(
    classifier: Classifier, detector: Detector, segmenter: Segmenter, backbone: Backbone
) -> None:
    limits = Limits()
    warm_up(ClassifyTask(classifier, limits, torch_probabilities(classifier)))
    warm_up(DetectTask(detector, limits, 0.5))
    warm_up(SegmentTask(segmenter, limits, 2**35))
    warm_up(RegionTask(RegionEncoder(backbone, (1,), (120,)), limits))


def test_an_upright_phone_photograph_is_measured_upright(classify: TestClient) -> None:
    image, file = Image.new("RGB", (120, 80), "red"), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file, "JPEG", exif=exif)
    assert post(classify, "/v1/predict", file.getvalue()).json()["size"] == [120, 80]


@pytest.mark.parametrize("name", ["bytes", "pixels", "boxes", "queue"])
def test_limits_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1; got 0"):
        replace(LIMITS, **{name: 0})
    with pytest.raises(ValueError, match="upload-seconds: expected more than 0"):
        replace(LIMITS, upload_seconds=0)


def test_answers_have_the_form_that_is_described(
    classify: TestClient, detect: TestClient, segment: TestClient, regions: TestClient
) -> None:
    """Every field, and nothing that would have to be made into another type."""
    forms: list[tuple[type[schema.Form], Any]] = [
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
    for form, answer in forms:
        form.model_validate_json(answer.text, strict=True)
