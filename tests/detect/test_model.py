"""Detectors: what is read from scores and offsets, and what is written, loaded and refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sppnet
from sppnet import Detections, Detector, DetectorConfig
from sppnet.backbones.backbone import create_backbone, stage_of_stride
from sppnet.detect.classic.rcnn import CropEncoder
from sppnet.detect.model import create_fc
from sppnet.detect.options import DetectOptions
from sppnet.features.encoder import DistinctVectors, RegionEncoder
from sppnet.ops.boxes import encode
from sppnet.registry import load_classifier
from sppnet.training.run import save_run
from tests.helpers.window_cases import noise

SMALL = DetectorConfig(("cat", "dog"), backbone="zf5", levels=(1,), scales=(64,), max_side=200)
IMAGE = (200, 300)
Rows = Sequence[Sequence[float]]


@pytest.fixture(scope="module")
def backbone() -> sppnet.Backbone:
    torch.manual_seed(0)
    return create_backbone("zf5")


def padded(rows: Rows, width: int = 256) -> Tensor:
    out = torch.zeros(len(rows), width)
    for row, values in enumerate(rows):
        out[row, : len(values)] = torch.tensor(values)
    return out


def plain(backbone: sppnet.Backbone, **values: Any) -> Detector:
    """The first numbers of a vector are its scores, then come the offsets of each class."""
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


def as_lists(found: Detections) -> list[tuple[list[float], float, int]]:
    rounded = [round(score, 4) for score in found.scores.tolist()]
    return list(zip(found.boxes.tolist(), rounded, found.labels.tolist(), strict=True))


def test_detections_counted_by_hand(backbone: sppnet.Backbone) -> None:
    """Threshold -1.5, suppression above 0.3 within a class, best first, cut to the image."""
    boxes = [
        (0, 0, 100, 100),
        (0, 0, 100, 30),  # overlaps the first by exactly 0.3
        (0, 0, 100, 31),
        (200, 100, 320, 220),
        (110, 0, 120, 10),
    ]
    scores = [(0.9, -1.5), (0.5, -9), (0.7, 0.8), (-1.4, -1.6), (-1.5, -1.49)]
    assert as_lists(read(plain(backbone), boxes, scores)) == [
        ([0, 0, 100, 100], 0.9, 0),
        ([0, 0, 100, 31], 0.8, 1),
        ([0, 0, 100, 30], 0.5, 0),
        ([200, 100, 300, 200], -1.4, 0),
        ([110, 0, 120, 10], -1.49, 1),
    ]


def test_the_norm_scales_vectors_before_the_layers(backbone: sppnet.Backbone) -> None:
    model = plain(backbone)
    model.norm.fill_(2.5)
    with torch.no_grad():
        model.score.bias.copy_(torch.tensor([0.25, -9.0]))
    (detection,) = as_lists(read(model, [(0, 0, 5, 5)], [(2, 0)]))
    assert detection == ([0, 0, 5, 5], 5.25, 0)


def test_a_hundred_of_a_class_are_left(backbone: sppnet.Backbone) -> None:
    """Suppressed ones take nobody's place; the other class has a hundred of its own."""
    boxes = [(12 * (k % 20), 12 * (k // 20), 12 * (k % 20) + 10, 12 * (k // 20) + 10) for k in range(120)]
    scores = [(k / 100, -k / 100) for k in range(120)]
    found = read(plain(backbone), boxes * 2, scores + [(a - 1e-3, b - 1e-3) for a, b in scores])
    for label in (0, 1):
        mine = found.scores[found.labels == label]
        expected = torch.tensor([score[label] for score in scores]).sort(descending=True).values[:100]
        torch.testing.assert_close(mine, expected)
    assert (found.scores.diff() <= 0).all()


def test_regression_moves_cuts_and_suppresses_again(backbone: sppnet.Backbone) -> None:
    boxes = torch.tensor([[50.0, 50, 150, 190], [50, 150, 150, 190], [200, 50, 280, 150], [10, 10, 20, 20]])
    targets = torch.tensor([[60.0, 40, 180, 180], [60, 40, 180, 181], [220, 50, 340, 150], [-30, -30, -20, -10]])
    offsets = encode(boxes, targets)
    vectors = [[1 - row / 10, -9, *offsets[row].tolist(), *[9.0] * 4] for row in range(4)]
    found = read(plain(backbone, regression="pool"), boxes.tolist(), vectors)
    expected = torch.tensor([[60.0, 40, 180, 180], [220, 50, 300, 150]])
    torch.testing.assert_close(found.boxes, expected, rtol=0, atol=1e-3)
    assert found.scores.tolist() == pytest.approx([1, 0.8])
    untouched = read(plain(backbone), boxes.tolist(), vectors)
    torch.testing.assert_close(untouched.boxes, boxes)


def test_each_class_has_offsets_of_its_own(backbone: sppnet.Backbone) -> None:
    vectors = [[1, 0.5, 0.1, 0, 0, 0, 0, -0.1, 0, 0]]
    found = read(plain(backbone, regression="pool"), [(100, 100, 120, 120)], vectors)
    torch.testing.assert_close(found.boxes, torch.tensor([[102.0, 100, 122, 120], [100, 98, 120, 118]]))
    assert found.labels.tolist() == [0, 1]


def test_offsets_come_from_pooled_vectors_or_from_what_is_scored(backbone: sppnet.Backbone) -> None:
    x = torch.randn(3, 256)
    for regression, width in (("pool", 256), ("fc", 7)):
        model = Detector(replace(SMALL, hidden=(6, 7), regression=regression), backbone)  # type: ignore[arg-type]
        model.norm.fill_(0.5)
        offsets = model.offsets
        assert isinstance(offsets, nn.Linear)
        assert (offsets.in_features, offsets.out_features) == (width, 8)
        with torch.inference_mode():
            scores, moves = model(x)
            fc = model.fc
            features = (fc.get_submodule("fc7")(fc.get_submodule("fc6")(x / 2).relu())).relu()
            expected = offsets(x / 2 if regression == "pool" else features).reshape(3, 2, 4)
            torch.testing.assert_close(scores, model.score(features))
        torch.testing.assert_close(moves, expected)


def test_softmax_leaves_out_the_background_which_is_last(backbone: sppnet.Backbone) -> None:
    logits = torch.tensor([[2.0, 0, 1], [0, 0, 9], [-1, 4, 0]])
    boxes = [(0, 0, 10, 10), (50, 0, 60, 10), (100, 0, 110, 10)]
    model = plain(backbone, scorer="softmax")
    assert model.score.out_features == 3
    found = read(model, boxes, logits.tolist())
    probabilities = logits.softmax(1)[:, :2]
    places = [(row, label) for row in range(3) for label in range(2) if probabilities[row, label] > 0.01]
    places.sort(key=lambda place: -probabilities[place].item())
    assert len(places) == 3
    expected = [([float(v) for v in boxes[r]], round(probabilities[r, c].item(), 4), c) for r, c in places]
    assert as_lists(found) == expected


def test_many_boxes_of_one_row_are_many_windows(backbone: sppnet.Backbone) -> None:
    """Vectors once and an index, or one vector a box: the same detections."""
    boxes = torch.cat((first := torch.rand(60, 2) * 150, first + 20 + torch.rand(60, 2) * 30), dim=1).tolist()
    vectors, index = torch.randn(9, 10).tolist(), torch.randint(0, 9, (60,)).tolist()
    model = plain(backbone, regression="pool")
    found = read(model, boxes, vectors, index)
    assert as_lists(found) == as_lists(read(model, boxes, [vectors[row] for row in index]))
    assert len(found.boxes) > 2


def some_boxes(count: int, height: int = 80, width: int = 110) -> Tensor:
    first = torch.rand(count, 2) * torch.tensor([width, height]) * 0.7
    return torch.cat((first, first + 4 + torch.rand(count, 2) * 25), dim=1)


@pytest.mark.parametrize("method", ["spp", "rcnn", "fast"])
def test_an_image_without_windows_has_no_detections(method: str, backbone: sppnet.Backbone) -> None:
    for scorer in ("svm", "softmax"):
        config = replace(SMALL, method=method, scorer=scorer, regression="pool", hidden=(4,))  # type: ignore[arg-type]
        found = Detector(config, backbone).detect(noise(80, 110), torch.empty(0, 4))
        assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))
        assert found.labels.dtype == torch.long


def test_detect_is_in_evaluation_mode_and_puts_training_back(backbone: sppnet.Backbone) -> None:
    model = Detector(replace(SMALL, hidden=(8, 8)), backbone)
    boxes = some_boxes(20)
    expected = model.detect(noise(80, 110), boxes)
    model.train()
    found = model.detect(noise(80, 110), boxes)
    assert model.training
    assert model.fc.training
    assert torch.equal(found.scores, expected.scores)
    assert not model.eval().detect(noise(80, 110), boxes).scores.requires_grad


def test_distinct_windows_give_the_detections_of_all_windows(backbone: sppnet.Backbone) -> None:
    """Boxes that cover the same cells have one vector; read from one vector a box they are found as well."""
    model = Detector(replace(SMALL, regression="pool"), backbone)
    boxes = some_boxes(40)
    boxes = torch.cat((boxes, boxes + 0.01))
    encoder = model.encoder
    assert isinstance(encoder, RegionEncoder)
    with torch.inference_mode():
        maps = encoder.prepare(noise(80, 110))
        model.norm.fill_(float(1 / encoder.vectors(maps, boxes).square().mean().sqrt()))
        distinct = encoder.distinct(maps, boxes)
        assert len(distinct.data) < 50
        one_each = DistinctVectors(encoder.vectors(maps, boxes), torch.arange(len(boxes)))
        expected = model.read(one_each, boxes, (80, 110))
    found = model.detect(noise(80, 110), boxes)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.boxes, expected.boxes)


@pytest.mark.parametrize(
    "values",
    [
        {"regression": "pool", "hidden": (8, 6), "levels": (2, (1, 3)), "scales": (64, 96), "rule": "released"},
        {"method": "rcnn", "reduce": "avg", "scorer": "softmax", "hidden": (5,)},
        {"method": "fast", "rule": "roi_pool", "levels": (3,), "hidden": (8,), "scorer": "softmax", "regression": "fc"},
    ],
)
def test_a_saved_detector_finds_the_same_when_loaded(
    values: dict[str, Any], backbone: sppnet.Backbone, tmp_path: Path
) -> None:
    few = 4 if values.get("method") == "rcnn" else 30
    config = replace(SMALL, proposals="grid", windows=few, overlap=0.4, scale_rule="released", **values)
    model = Detector(config, backbone)
    model.norm.fill_(0.02)
    save_run(model, tmp_path / "run")
    again = sppnet.load(tmp_path / "run")
    assert isinstance(again, Detector)
    assert again.config == config
    assert not again.training
    boxes = some_boxes(few)
    pairs = [(one.detect(noise(80, 110), boxes), one.predict(noise(80, 110))) for one in (model, again)]
    for before, after in ((pairs[0][0], pairs[1][0]), (pairs[0][1][0], pairs[1][1][0])):
        assert len(before.boxes)
        assert torch.equal(after.boxes, before.boxes)
        assert torch.equal(after.scores, before.scores)
        assert torch.equal(after.labels, before.labels)
    with pytest.raises(ValueError, match=r"run: expected a classifier; .* holds a detector"):
        load_classifier(tmp_path / "run")


def test_several_images_are_answered_in_their_order(backbone: sppnet.Backbone, tmp_path: Path) -> None:
    model = Detector(replace(SMALL, proposals="grid", windows=30), backbone)
    images = [noise(64, 90), noise(90, 64, seed=1)]
    images[0].save(tmp_path / "image.png")
    found = model.predict([tmp_path / "image.png", images[1]])
    assert [as_lists(one) for one in found] == [as_lists(model.predict(image)[0]) for image in images]
    with pytest.raises(sppnet.ImageError, match=r"missing\.png: no such file"):
        model.predict([images[1], tmp_path / "missing.png"])


def test_r_cnn_has_an_encoder_of_its_own(backbone: sppnet.Backbone) -> None:
    encoder = Detector(replace(SMALL, method="rcnn", reduce="avg", levels=(2,)), backbone).encoder
    assert isinstance(encoder, CropEncoder)
    assert (encoder.levels, encoder.reduce, encoder.side) == ((2,), "avg", 224)


def test_fc_layers_are_numbered_from_6() -> None:
    assert [name for name, _ in create_fc(5, (4, 3)).named_children()] == [
        "fc6",
        "relu6",
        "drop6",
        "fc7",
        "relu7",
        "drop7",
    ]
    x = torch.randn(2, 5)
    assert torch.equal(create_fc(5, ())(x), x)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "sppp"}, "method: expected one of spp, rcnn, fast; got 'sppp'; did you mean 'spp'"),
        ({"scorer": "logistic"}, "scorer: expected one of svm, softmax; got 'logistic'"),
        ({"regression": "pooled"}, "regression: expected one of none, pool, fc; got 'pooled'; did you mean 'pool'"),
        ({"classes": ()}, r"classes: expected one or more different names; got \(\)"),
        ({"classes": ("cat", "cat")}, r"classes: expected one or more different names; got \('cat', 'cat'\)"),
        ({"scales": (20,)}, r"scales: zf5 takes shorter sides of at least 31 pixels; got \(20,\)"),
        ({"max_side": 50}, "max_side: expected at least the largest scale, 64; got 50"),
        ({"rule": "exact"}, "rule: expected one of paper, released, roi_pool; got 'exact'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_configurations_are_named(values: dict[str, Any], message: str, backbone: sppnet.Backbone) -> None:
    with pytest.raises(ValueError, match=message):
        Detector(replace(SMALL, **values), backbone)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "faster"}, "method: expected one of spp, rcnn, fast; got 'faster'; did you mean 'fast'"),
        ({"scorer": "softmax", "hidden": ()}, "scorer: a softmax is trained with the fc layers"),
        ({"scorer": "softmax", "finetune": False}, "scorer: a softmax .* needs hidden sizes and finetune"),
        ({"scorer": "SVM"}, "scorer: expected one of svm, softmax; got 'SVM'"),
        ({"hidden": (64, 0)}, r"hidden: expected sizes of at least 1; got \(64, 0\)"),
        ({"windows": 0}, "windows: expected at least 1; got 0"),
        ({"steps": 0}, "steps: expected at least 1; got 0"),
        ({"workers": 0}, "workers: expected at least 1; got 0"),
        ({"batch": 0}, "batch: expected at least 1; got 0"),
        ({"levels": (0,)}, "levels"),
        ({"rule": "ceil"}, "rule: expected one of paper, released, roi_pool; got 'ceil'"),
        ({"reduce": "sum"}, "reduce: expected one of max, avg; got 'sum'"),
        ({"scale_rule": "nearest"}, "scale_rule: expected one of paper, released; got 'nearest'"),
        ({"lr": -1.0}, "lr: expected a number of at least 0"),
        ({"method": "rcnn", "scales": (480,)}, r"scales: the method 'rcnn' does not use it; expected \(688,\)"),
        ({"method": "fast", "levels": (3,)}, "levels: the method 'fast' does not use it"),
        ({"method": "fast", "regression": False}, "regression: Fast R-CNN .* cannot be left out"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectOptions(**values)


def test_options_become_a_configuration() -> None:
    options = DetectOptions(levels=(3, 1), scales=(480, 688), hidden=(16,), windows=7, reduce="avg", proposals="grid")
    config = options.config(("a", "b"), 3)
    assert config == DetectorConfig(
        ("a", "b"), stage=3, levels=(3, 1), scales=(480, 688), reduce="avg", hidden=(16,), regression="pool",
        proposals="grid", windows=7,
    )  # fmt: skip
    assert replace(options, regression=False).config(("a",), None).regression == "none"
    fast = DetectOptions(method="fast").config(("a", "b"), 3)
    found = (fast.method, fast.levels, fast.rule, fast.scorer, fast.regression)
    assert found == ("fast", (7,), "roi_pool", "softmax", "fc")


def test_the_network_is_cut_off_at_stride_16() -> None:
    backbone = DetectOptions().create_backbone()
    assert (backbone.name, backbone.stage, backbone.geometry.stride) == ("tf_efficientnet_lite0", 3, (16, 16))
    assert DetectOptions(stage=2).create_backbone().geometry.stride == (8, 8)
    assert DetectOptions(backbone="zf5").create_backbone().stage is None


@pytest.mark.parametrize(
    ("name", "stride", "stage"),
    [
        ("resnet18", 16, 3),
        ("tf_efficientnet_lite0", 16, 3),
        ("tf_efficientnet_lite0", 31, 3),
        ("tf_efficientnet_lite0", 32, 4),
        ("resnet18", 2, 0),
        ("zf5", 16, None),
    ],
)
def test_the_last_stage_of_a_stride(name: str, stride: int, stage: int | None) -> None:
    assert stage_of_stride(name, stride) == stage


def test_a_stage_of_no_network_or_too_fine_a_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="backbone: no network is called 'resnet81'; close: "):
        stage_of_stride("resnet81", 16)
    with pytest.raises(ValueError, match="stride: the finest map of resnet18 has stride 2; got 1"):
        stage_of_stride("resnet18", 1)
