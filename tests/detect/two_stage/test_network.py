"""The maps, sizes and candidates of a two-stage detector."""

import pytest
import torch
from PIL import Image

from sppnet.backbones.backbone import create_backbone
from sppnet.detect.two_stage.network import detection_stages, edge_scale
from tests.helpers.two_stage import tiny_detector


@pytest.mark.parametrize(
    ("name", "stages", "strides", "pooled", "multiple", "sides"),
    [
        ("test_resnet", (2, 3, 4), [8, 16, 32], [1, 2], 32, [12, 6, 3]),
        ("test_vit", (5,), [16], [0], 16, [5]),
        ("zf5", (None,), [16], [0], 16, [4]),
    ],
)
def test_uses_the_last_maps_of_strides_8_16_and_32(
    name: str, stages: tuple[int | None, ...], strides: list[int], pooled: list[int], multiple: int, sides: list[int]
) -> None:
    model = tiny_detector(backbone=name)
    assert (model.stages, model.strides, model.pooled, model.multiple) == (stages, strides, pooled, multiple)
    x = model.pad(torch.zeros(2, 3, 65, 33))
    assert all(side % multiple == 0 for side in x.shape[2:])
    assert [data.shape[2] for data in model.maps(x)] == sides


def test_stages_end_at_the_last_map_of_each_stride() -> None:
    assert detection_stages(create_backbone("resnet18", -1, "none")) == (2, 3, 4)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((128, 128), (64, 64)), ((32, 40), (64, 80)), ((100, 400), (24, 96)), ((1, 1), (64, 64)), ((3000, 1), (96, 1))],
)
def test_images_are_resized_to_the_shorter_side_within_the_limit(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    model = tiny_detector()
    assert model.resized(*size) == expected
    assert model.prepare(Image.new("RGB", size[::-1])).shape == (1, 3, *expected)


def test_edges_are_scaled_by_the_factor_of_their_axis() -> None:
    box = torch.tensor([10.0, 20, 30, 40]) * edge_scale((100, 50), (200, 200))
    assert box.tolist() == [40, 40, 120, 80]


@pytest.mark.parametrize("size", [(64, 96), (1, 1), (33, 61)])
def test_candidates_are_inside_the_image(size: tuple[int, int]) -> None:
    model = tiny_detector(windows=20)
    with torch.inference_mode():
        found = model(model.maps(model.pad(torch.randn(1, 3, *size))), size)
    count = len(found.proposals)
    assert count <= 20
    assert [len(part) for part in found] == [count] * 5
    for boxes in (found.boxes, found.proposals):
        assert boxes.min() >= 0 if count else True
        assert (boxes <= torch.tensor([size[1], size[0], size[1], size[0]])).all()
    assert found.classes.sum(1).tolist() == pytest.approx([1] * count, abs=1e-3)
    assert ((found.objectness >= 0) & (found.objectness <= 1)).all()
    assert found.dense.tolist() == sorted(found.dense.tolist(), reverse=True)
