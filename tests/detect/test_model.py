"""Tests of detectors: decoding of scores and offsets, saving and loading, validation of configurations."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sppnet
from sppnet import Detections, Detector, DetectorConfig
from sppnet.backbones.backbone import create_backbone
from sppnet.data.images import ImageSource
from sppnet.detect.classic.rcnn import CropEncoder
from sppnet.detect.model import create_detector, create_fc
from sppnet.detect.predict import DetectionResult
from sppnet.features.encoder import DistinctVectors, RegionEncoder
from sppnet.inference.results import Failure
from sppnet.ops.boxes import encode
from sppnet.training.run import save
from tests.helpers.window_cases import noise

SMALL = DetectorConfig(("cat", "dog"), backbone="zf5", levels=(1,), scales=(64,), max_side=200)
IMAGE = (200, 300)
Rows = Sequence[Sequence[float]]


@pytest.fixture(scope="module")
def backbone() -> sppnet.Backbone:
    torch.manual_seed(0)
    return create_backbone("zf5")


def padded(rows: Rows, width: int = 256) -> Tensor:
    vectors = torch.zeros(len(rows), width)
    for row, values in enumerate(rows):
        vectors[row, : len(values)] = torch.tensor(values)
    return vectors


def passthrough(backbone: sppnet.Backbone, **values: Any) -> Detector:
    """Create a detector whose vectors start with the scores, followed by the offsets of each class."""
    model = Detector(replace(SMALL, **values), backbone)
    outputs = model.score.out_features
    with torch.no_grad():
        model.score.weight.copy_(torch.eye(outputs, 256))
        model.score.bias.zero_()
        if isinstance(model.offsets, nn.Linear):
            model.offsets.weight.copy_(torch.eye(outputs + 8, 256)[outputs:])
            model.offsets.bias.zero_()
    return model


def read(model: Detector, boxes: Rows, vectors: Rows, index: Sequence[int] | None = None) -> Detections:
    order = torch.tensor(range(len(boxes)) if index is None else index, dtype=torch.long)
    with torch.inference_mode():
        return model.read(DistinctVectors(padded(vectors), order), torch.tensor(boxes).float().reshape(-1, 4), IMAGE)


def as_lists(detections: Detections) -> list[tuple[list[float], float, int]]:
    rounded = [round(score, 4) for score in detections.scores.tolist()]
    return list(zip(detections.boxes.tolist(), rounded, detections.labels.tolist(), strict=True))


def test_thresholds_suppresses_sorts_and_clips_detections(backbone: sppnet.Backbone) -> None:
    """The threshold is -1.5; NMS runs per class and removes overlaps above 0.3."""
    boxes = [
        (0, 0, 100, 100),
        (0, 0, 100, 30),  # overlaps the first by exactly 0.3
        (0, 0, 100, 31),
        (200, 100, 320, 220),
        (110, 0, 120, 10),
    ]
    scores = [(0.9, -1.5), (0.5, -9), (0.7, 0.8), (-1.4, -1.6), (-1.5, -1.49)]
    assert as_lists(read(passthrough(backbone), boxes, scores)) == [
        ([0, 0, 100, 100], 0.9, 0),
        ([0, 0, 100, 31], 0.8, 1),
        ([0, 0, 100, 30], 0.5, 0),
        ([200, 100, 300, 200], -1.4, 0),
        ([110, 0, 120, 10], -1.49, 1),
    ]


def test_norm_scales_vectors_before_the_layers(backbone: sppnet.Backbone) -> None:
    model = passthrough(backbone)
    model.norm.fill_(2.5)
    with torch.no_grad():
        model.score.bias.copy_(torch.tensor([0.25, -9.0]))
    (detection,) = as_lists(read(model, [(0, 0, 5, 5)], [(2, 0)]))
    assert detection == ([0, 0, 5, 5], 5.25, 0)


def test_keeps_at_most_100_detections_per_class(backbone: sppnet.Backbone) -> None:
    """Suppressed detections do not count."""
    boxes = [(12 * (k % 20), 12 * (k // 20), 12 * (k % 20) + 10, 12 * (k // 20) + 10) for k in range(120)]
    scores = [(k / 100, -k / 100) for k in range(120)]
    detections = read(passthrough(backbone), boxes * 2, scores + [(a - 1e-3, b - 1e-3) for a, b in scores])
    for label in (0, 1):
        class_scores = detections.scores[detections.labels == label]
        expected = torch.tensor([score[label] for score in scores]).sort(descending=True).values[:100]
        torch.testing.assert_close(class_scores, expected)
    assert (detections.scores.diff() <= 0).all()


def test_regression_is_followed_by_clipping_and_second_nms(backbone: sppnet.Backbone) -> None:
    boxes = torch.tensor([[50.0, 50, 150, 190], [50, 150, 150, 190], [200, 50, 280, 150], [10, 10, 20, 20]])
    targets = torch.tensor([[60.0, 40, 180, 180], [60, 40, 180, 181], [220, 50, 340, 150], [-30, -30, -20, -10]])
    offsets = encode(boxes, targets)
    vectors = [[1 - row / 10, -9, *offsets[row].tolist(), *[9.0] * 4] for row in range(4)]
    detections = read(passthrough(backbone, regression="pool"), boxes.tolist(), vectors)
    expected = torch.tensor([[60.0, 40, 180, 180], [220, 50, 300, 150]])
    torch.testing.assert_close(detections.boxes, expected, rtol=0, atol=1e-3)
    assert detections.scores.tolist() == pytest.approx([1, 0.8])
    without_regression = read(passthrough(backbone), boxes.tolist(), vectors)
    torch.testing.assert_close(without_regression.boxes, boxes)


def test_each_class_has_its_own_offsets(backbone: sppnet.Backbone) -> None:
    vectors = [[1, 0.5, 0.1, 0, 0, 0, 0, -0.1, 0, 0]]
    detections = read(passthrough(backbone, regression="pool"), [(100, 100, 120, 120)], vectors)
    torch.testing.assert_close(detections.boxes, torch.tensor([[102.0, 100, 122, 120], [100, 98, 120, 118]]))
    assert detections.labels.tolist() == [0, 1]


def test_regression_selects_the_input_of_the_offsets(backbone: sppnet.Backbone) -> None:
    x = torch.randn(3, 256)
    for regression, width in (("pool", 256), ("fc", 7)):
        model = Detector(replace(SMALL, hidden=(6, 7), regression=regression), backbone)  # type: ignore[arg-type]
        model.norm.fill_(0.5)
        offsets = model.offsets
        assert isinstance(offsets, nn.Linear)
        assert (offsets.in_features, offsets.out_features) == (width, 8)
        with torch.inference_mode():
            scores, predicted = model(x)
            fc = model.fc
            features = (fc.get_submodule("fc7")(fc.get_submodule("fc6")(x / 2).relu())).relu()
            expected = offsets(x / 2 if regression == "pool" else features).reshape(3, 2, 4)
            torch.testing.assert_close(scores, model.score(features))
        torch.testing.assert_close(predicted, expected)


def test_softmax_drops_the_background_class(backbone: sppnet.Backbone) -> None:
    logits = torch.tensor([[2.0, 0, 1], [0, 0, 9], [-1, 4, 0]])
    boxes = [(0, 0, 10, 10), (50, 0, 60, 10), (100, 0, 110, 10)]
    model = passthrough(backbone, scorer="softmax")
    assert model.score.out_features == 3
    detections = read(model, boxes, logits.tolist())
    probabilities = logits.softmax(1)[:, :2]
    pairs = [(row, label) for row in range(3) for label in range(2) if probabilities[row, label] > 0.01]
    pairs.sort(key=lambda pair: -probabilities[pair].item())
    assert len(pairs) == 3
    expected = [([float(v) for v in boxes[r]], round(probabilities[r, c].item(), 4), c) for r, c in pairs]
    assert as_lists(detections) == expected


def test_indexed_vectors_match_one_vector_per_box(backbone: sppnet.Backbone) -> None:
    boxes = torch.cat((first := torch.rand(60, 2) * 150, first + 20 + torch.rand(60, 2) * 30), dim=1).tolist()
    vectors, index = torch.randn(9, 10).tolist(), torch.randint(0, 9, (60,)).tolist()
    model = passthrough(backbone, regression="pool")
    detections = read(model, boxes, vectors, index)
    assert as_lists(detections) == as_lists(read(model, boxes, [vectors[row] for row in index]))
    assert len(detections.boxes) > 2


def random_boxes(count: int, height: int = 80, width: int = 110) -> Tensor:
    first = torch.rand(count, 2) * torch.tensor([width, height]) * 0.7
    return torch.cat((first, first + 4 + torch.rand(count, 2) * 25), dim=1)


@pytest.mark.parametrize("method", ["spp", "rcnn", "fast"])
def test_no_windows_give_no_detections(method: str, backbone: sppnet.Backbone) -> None:
    for scorer in ("svm", "softmax"):
        config = replace(SMALL, method=method, scorer=scorer, regression="pool", hidden=(4,))  # type: ignore[arg-type]
        detections = Detector(config, backbone).detect(noise(80, 110), torch.empty(0, 4))
        assert (detections.boxes.shape, detections.scores.shape, detections.labels.shape) == ((0, 4), (0,), (0,))
        assert detections.labels.dtype == torch.long


def test_detect_uses_evaluation_mode_and_restores_training_mode(backbone: sppnet.Backbone) -> None:
    model = Detector(replace(SMALL, hidden=(8, 8)), backbone)
    boxes = random_boxes(20)
    expected = model.detect(noise(80, 110), boxes)
    model.train()
    detections = model.detect(noise(80, 110), boxes)
    assert model.training
    assert model.fc.training
    assert torch.equal(detections.scores, expected.scores)
    assert not model.eval().detect(noise(80, 110), boxes).scores.requires_grad


def test_detect_matches_one_vector_per_box(backbone: sppnet.Backbone) -> None:
    """`detect` computes one vector for all boxes that cover the same cells."""
    model = Detector(replace(SMALL, regression="pool"), backbone)
    boxes = random_boxes(40)
    boxes = torch.cat((boxes, boxes + 0.01))
    encoder = model.encoder
    assert isinstance(encoder, RegionEncoder)
    with torch.inference_mode():
        maps = encoder.prepare(noise(80, 110))
        model.norm.fill_(float(1 / encoder.vectors(maps, boxes).square().mean().sqrt()))
        distinct = encoder.distinct(maps, boxes)
        assert len(distinct.data) < 50
        one_per_box = DistinctVectors(encoder.vectors(maps, boxes), torch.arange(len(boxes)))
        expected = model.read(one_per_box, boxes, (80, 110))
    detections = model.detect(noise(80, 110), boxes)
    assert torch.equal(detections.labels, expected.labels)
    torch.testing.assert_close(detections.scores, expected.scores)
    torch.testing.assert_close(detections.boxes, expected.boxes)


@pytest.mark.parametrize(
    "values",
    [
        {"regression": "pool", "hidden": (8, 6), "levels": (2, (1, 3)), "scales": (64, 96), "rule": "released"},
        {"method": "rcnn", "reduce": "avg", "scorer": "softmax", "hidden": (5,)},
        {"method": "fast", "rule": "roi_pool", "levels": (3,), "hidden": (8,), "scorer": "softmax", "regression": "fc"},
    ],
)
def test_saved_and_loaded_detector_gives_the_same_detections(
    values: dict[str, Any], backbone: sppnet.Backbone, tmp_path: Path
) -> None:
    count = 4 if values.get("method") == "rcnn" else 30
    config = replace(SMALL, proposals="grid", windows=count, overlap=0.4, scale_rule="released", **values)
    model = Detector(config, backbone)
    model.norm.fill_(0.02)
    save(model, tmp_path / "run")
    loaded = sppnet.load(tmp_path / "run")
    assert isinstance(loaded, Detector)
    assert loaded.config == config
    assert not loaded.training
    boxes = random_boxes(count)
    results = [
        (part.detect(noise(80, 110), boxes), *part.predict(noise(80, 110), min_score=-9)) for part in (model, loaded)
    ]
    for before, after in zip(*results, strict=True):
        assert not isinstance(before, Failure)
        assert not isinstance(after, Failure)
        assert len(before.boxes)
        assert torch.equal(after.boxes, before.boxes)
        assert torch.equal(after.scores, before.scores)
        assert list(after.labels) == list(before.labels)


def test_predict_accepts_all_forms_of_images_in_order(backbone: sppnet.Backbone, tmp_path: Path) -> None:
    model = Detector(replace(SMALL, proposals="grid", windows=30), backbone)
    images = [noise(64, 90), noise(90, 64, seed=1)]
    path = tmp_path / "image.png"
    images[0].save(path)
    array = np.asarray(images[0])
    forms: list[ImageSource] = [
        path,
        str(path),
        path.read_bytes(),
        images[0],
        array,
        torch.tensor(array).permute(2, 0, 1),
        images[1],
    ]
    expected, other = (model.predict(image, min_score=-9)[0].to_dict()["objects"] for image in images)
    assert expected
    results = model.predict(forms, min_score=-9, workers=2)
    assert [result.to_dict()["objects"] for result in results] == [expected] * 6 + [other]
    assert [result.source for result in results] == [str(path)] * 2 + [f"image {number}" for number in range(2, 7)]
    assert [getattr(result, "size", None) for result in results] == [(64, 90)] * 6 + [(90, 64)]


def test_predict_reports_scores_from_the_minimum(backbone: sppnet.Backbone) -> None:
    boxes = [(0.0, 0, 10, 10), (20.0, 0, 30, 10), (40.0, 0, 50, 10)]
    for scorer, default in (("svm", -0.5), ("softmax", 0.5)):
        model = passthrough(backbone, scorer=scorer, proposals="grid", windows=9)
        detections = read(model, boxes, [(1, -9), (-0.5, -9), (-0.6, -9)])
        model.detect = lambda *_, found=detections: found  # type: ignore[method-assign]
        (result,) = model.predict(noise(64, 90))
        assert isinstance(result, DetectionResult)
        assert result.scores.tolist() == [score for score in detections.scores.tolist() if score >= default]
        (result,) = model.predict(noise(64, 90), min_score=-0.55)
        assert len(result.to_dict()["objects"]) == (2 if scorer == "svm" else len(detections.scores))


def test_predict_skips_or_raises_errors_of_images(backbone: sppnet.Backbone, tmp_path: Path) -> None:
    """The truncated image has a legal header, which is all that reading proposals from a file needs."""
    model = Detector(replace(SMALL, windows=30), backbone)
    good, truncated, missing = (tmp_path / f"{name}.png" for name in ("good", "truncated", "missing"))
    noise(64, 90).save(good)
    truncated.write_bytes(good.read_bytes()[:300])
    file = tmp_path / "boxes.csv"
    file.write_text(
        "image,x1,y1,x2,y2\n" + "".join(f"{name}.png,1,2,30,40\n" for name in ("good", "truncated", "other"))
    )
    for source in ("grid", str(file)):
        results = model.predict([truncated, good, missing], proposals=source, on_error="skip")
        assert [isinstance(result, Failure) for result in results] == [True, False, True]
        assert [result.source for result in results] == [str(truncated), str(good), str(missing)]
        assert results[2].to_dict() == {"source": str(missing), "failure": "no such file"}
        for bad in (truncated, missing):
            with pytest.raises(sppnet.ImageError, match=f"{bad.name}: "):
                model.predict([good, bad], proposals=source)
    with pytest.raises(sppnet.ImageError, match=r"image 1: expected uint8 pixels"):
        model.predict([noise(64, 90), np.zeros((3, 3))], proposals="grid")
    with pytest.raises(ValueError, match=r"images: expected paths, to find them in .*boxes.csv, got Image"):
        model.predict(noise(64, 90), proposals=str(file))


def test_detect_accepts_integer_boxes(backbone: sppnet.Backbone) -> None:
    model, boxes = Detector(SMALL, backbone), torch.tensor([[0, 0, 40, 30], [20, 10, 90, 70]])
    detections, expected = (model.detect(noise(80, 110), windows) for windows in (boxes, boxes.float()))
    assert detections.boxes.dtype == torch.float32
    assert torch.equal(detections.boxes, expected.boxes)
    assert torch.equal(detections.scores, expected.scores)


def test_created_detector_has_the_resolved_stage() -> None:
    model = create_detector(replace(SMALL, backbone="resnet18", stage=-1), None)
    assert (model.config.stage, model.encoder.backbone.stage, model.encoder.backbone.geometry.stride) == (
        4,
        4,
        (32, 32),
    )


def test_rcnn_uses_the_crop_encoder(backbone: sppnet.Backbone) -> None:
    encoder = Detector(replace(SMALL, method="rcnn", reduce="avg", levels=(2,)), backbone).encoder
    assert isinstance(encoder, CropEncoder)
    assert (encoder.levels, encoder.reduce, encoder.side) == ((2,), "avg", 224)


def test_fc_layers_are_numbered_from_six() -> None:
    names = [name for name, _ in create_fc(5, (4, 3)).named_children()]
    assert names == ["fc6", "relu6", "drop6", "fc7", "relu7", "drop7"]
    x = torch.randn(2, 5)
    assert torch.equal(create_fc(5, ())(x), x)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "sppp"}, "method: expected one of spp, rcnn, fast, got 'sppp'; did you mean 'spp'"),
        ({"scorer": "logistic"}, "scorer: expected one of svm, softmax, got 'logistic'"),
        ({"regression": "pooled"}, "regression: expected one of none, pool, fc, got 'pooled'; did you mean 'pool'"),
        ({"classes": ()}, "classes: expected one or more distinct names, got 0 names"),
        ({"classes": ("cat", "cat")}, "classes: expected one or more distinct names, got 2 names, 1 of them distinct"),
        ({"scales": (20,)}, r"scales: expected shorter sides of at least 31 pixels for zf5, got \(20,\)"),
        ({"max_side": 50}, "max_side: expected at least the largest scale, 64, got 50"),
        ({"rule": "exact"}, "rule: expected one of paper, released, roi_pool, got 'exact'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_configurations(values: dict[str, Any], message: str, backbone: sppnet.Backbone) -> None:
    with pytest.raises(ValueError, match=message):
        Detector(replace(SMALL, **values), backbone)
