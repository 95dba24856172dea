"""The HTTP interface: its answers are those of the library."""

import base64
import io
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import load as load_tensors

from sppnet.backbones.backbone import Backbone, create_backbone
from sppnet.classify.model import Classifier
from sppnet.detect.model import Detector
from sppnet.detect.proposals import propose
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.memory import pass_bytes, settled_bytes
from sppnet.segment.memory import whole_fits
from sppnet.segment.model import Segmenter, SegmenterConfig, create_segmenter
from sppnet.segment.views import label_image
from sppnet.serving import engines, schema
from sppnet.serving.app import Batching, Service
from sppnet.serving.engines import onnx_probabilities, takes_padding, torch_probabilities
from sppnet.serving.limits import Limits
from sppnet.serving.tasks import ClassifyTask, DetectTask, RegionTask, SegmentTask, Task, warm_up
from tests.helpers.web_clients import BOX, LIMITS, client, photograph, post, ready, refused

pytest_plugins = ("web_clients",)


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
    from sppnet.segment.views import View

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
    memory = settled_bytes() + pass_bytes(segmenter, 512, 512) + 70_000_000
    assert not whole_fits(segmenter, 8 * 512, 512, memory)
    tasks = {count: SegmentTask(segmenter.eval(), Limits(), bound) for count, bound in ((8, 2**35), (1, memory))}
    for count, task in tasks.items():
        asked = [task.predict(photograph(512, 512)) for _ in range(8)]
        asked[0].answer(asked)  # counts what a pass takes
        passes: list[int] = []
        with segmenter.register_forward_pre_hook(lambda _, inputs, passes=passes: passes.append(len(inputs[0]))):
            asked[0].answer(asked)
        assert passes == [count] * (8 // count)


def test_tiles_for_a_client_that_has_gone_are_left(segmenter: Segmenter) -> None:
    memory = settled_bytes() + pass_bytes(segmenter, 512, 512) + 20_000_000
    task = SegmentTask(segmenter, Limits(), memory)
    asked = task.predict(photograph(1_500, 1_500))
    passes: list[str] = []
    with segmenter.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].device.type)):
        asked.answer([asked])
        every = passes.count("cpu")  # others are counted on the meta device
        assert every > 3
        asked.gone.set()
        with pytest.raises(CancelledError):
            asked.answer([asked])
    assert passes.count("cpu") == every + 1


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


def test_onnx_gives_back_what_a_large_photograph_took(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = onnx_probabilities(classifier, threads=1)
    answer([Image.new("RGB", (64, 64))])
    begun = settled_bytes()
    answer([Image.new("RGB", (2000, 2000))])
    assert settled_bytes() > begun + 300_000_000
    monkeypatch.setattr(engines, "_SHRINK_SECONDS", 0.0)
    answer([Image.new("RGB", (64, 64))])
    assert settled_bytes() < begun + 100_000_000


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
