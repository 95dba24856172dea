"""Tests of the training options of detectors."""

from dataclasses import replace
from typing import Any

import pytest

from sppnet import DetectorConfig
from sppnet.backbones.backbone import stage_of_stride
from sppnet.detect.options import DetectOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "faster"}, "method: expected one of spp, rcnn, fast, got 'faster'; did you mean 'fast'"),
        ({"scorer": "softmax", "hidden": ()}, "scorer: expected svm, got softmax; a softmax requires hidden sizes"),
        ({"scorer": "softmax", "finetune": False}, "scorer: .* requires hidden sizes and finetune"),
        ({"scorer": "SVM"}, "scorer: expected one of svm, softmax, got 'SVM'"),
        ({"hidden": (64, 0)}, r"hidden: expected sizes of at least 1, got \(64, 0\)"),
        ({"windows": 0}, "windows: expected at least 1, got 0"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"levels": (0,)}, "levels"),
        ({"rule": "ceil"}, "rule: expected one of paper, released, roi_pool, got 'ceil'"),
        ({"reduce": "sum"}, "reduce: expected one of max, avg, got 'sum'"),
        ({"scale_rule": "nearest"}, "scale_rule: expected one of paper, released, got 'nearest'"),
        ({"lr": -1.0}, "lr: expected a number of at least 0"),
        (
            {"method": "rcnn", "scales": (480,)},
            r"scales: expected the default \(688,\), got \(480,\); the method 'rcnn'",
        ),
        ({"method": "fast", "levels": (3,)}, r"levels: .* got \(3,\); the method 'fast' does not use this option"),
        ({"method": "fast", "regression": False}, "regression: expected True, got False; Fast R-CNN"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_options(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectOptions(**values)


def test_config_has_the_values_of_the_options() -> None:
    options = DetectOptions(levels=(3, 1), scales=(480, 688), hidden=(16,), windows=7, reduce="avg", proposals="grid")
    config = options.config(("a", "b"), 3)
    assert config == DetectorConfig(
        ("a", "b"), stage=3, levels=(3, 1), scales=(480, 688), reduce="avg", hidden=(16,), regression="pool",
        proposals="grid", windows=7,
    )  # fmt: skip
    assert replace(options, regression=False).config(("a",), None).regression == "none"
    fast = DetectOptions(method="fast").config(("a", "b"), 3)
    values = (fast.method, fast.levels, fast.rule, fast.scorer, fast.regression)
    assert values == ("fast", (7,), "roi_pool", "softmax", "fc")


def test_backbone_is_cut_off_at_stride_16() -> None:
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
def test_stage_of_stride_selects_the_last_stage(name: str, stride: int, stage: int | None) -> None:
    assert stage_of_stride(name, stride) == stage


def test_stage_of_stride_rejects_unknown_networks_and_too_fine_strides() -> None:
    with pytest.raises(ValueError, match=r"backbone: expected a timm network .*, got 'resnet81'; close matches: "):
        stage_of_stride("resnet81", 16)
    with pytest.raises(ValueError, match=r"stride: expected at least 2 \(the finest map of resnet18\), got 1"):
        stage_of_stride("resnet18", 1)
