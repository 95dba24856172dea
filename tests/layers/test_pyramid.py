"""SpatialPyramidPool and RegionPyramidPool equal the operators with the constructor's options, and check them."""

from typing import Any

import pytest
import torch

from sppnet import RegionPyramidPool, SpatialPyramidPool, pyramid_pool, region_pyramid_pool


def test_spatial_pyramid_pool_equals_the_operator() -> None:
    module = SpatialPyramidPool((4, (2, 3)), reduce="avg", rule="caffe")
    assert not module.state_dict()
    assert module.bins == 22
    assert repr(module) == "SpatialPyramidPool(levels=(4, (2, 3)), reduce='avg', rule='caffe')"
    x, sizes = torch.randn(2, 3, 8, 9), [(8, 9), (4, 6)]
    expected = pyramid_pool(x, (4, (2, 3)), reduce="avg", rule="caffe", sizes=sizes)
    assert torch.equal(module(x, sizes), expected)
    assert not torch.equal(module(x), expected)


def test_region_pyramid_pool_equals_the_operator() -> None:
    module = RegionPyramidPool((4, (2, 3)), 1 / 8, "released", (1.0, 2.0), "avg", "clip")
    x, sizes = torch.randn(2, 3, 6, 7), [(6, 7), (3, 4)]
    boxes = [torch.tensor([[0.0, 0, 30, 40], [8, 9, 50, 44], [-99, -99, -90, -90]]), torch.tensor([[5.0, 6, 40, 40]])]
    expected = region_pyramid_pool(
        x, boxes, (4, (2, 3)), 1 / 8, "released", offset=(1.0, 2.0), reduce="avg", sizes=sizes, on_bad="clip"
    )
    assert torch.equal(module(x, boxes, sizes), expected)
    assert torch.equal(module(x, torch.cat(boxes), sizes, torch.tensor([0, 3, 4])), expected)
    assert not torch.equal(module(x, boxes), expected)
    assert not module.state_dict()
    assert module.bins == 22
    assert repr(module) == (
        "RegionPyramidPool(levels=(4, (2, 3)), spatial_scale=(0.125, 0.125), rule='released', offset=(1.0, 2.0),"
        " reduce='avg', on_bad='clip')"
    )
    x, boxes = x[:1], boxes[1:]
    assert torch.equal(RegionPyramidPool()(x, boxes), region_pyramid_pool(x, boxes))


@pytest.mark.parametrize("options", [{"levels": (0,)}, {"reduce": "mean"}, {"rule": "adaptiv"}])
@pytest.mark.usefixtures("unchecked")
def test_spatial_pyramid_pool_rejects_invalid_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(options))}\S*: expected"):
        SpatialPyramidPool(**{"levels": (2, 1), **options})


@pytest.mark.parametrize(
    "options",
    [
        {"levels": (2, 0)},
        {"spatial_scale": 0},
        {"rule": "adaptive"},
        {"offset": torch.inf},
        {"reduce": "mean"},
        {"on_bad": "skip"},
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_region_pyramid_pool_rejects_invalid_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(options))}\S*: expected"):
        RegionPyramidPool(**options)
