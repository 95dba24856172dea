import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sppnet
from sppnet.layers.aspp import ASPP
from sppnet.segment.model import Segmenter, create_segmenter
from sppnet.training.run import save
from tests.helpers.tiny_segmenter import HEADS, TINY, tiny_segmenter


@pytest.fixture(scope="module")
def tiny() -> Segmenter:
    return tiny_segmenter()


@pytest.mark.parametrize("options", HEADS)
def test_logits_of_all_heads_have_the_size_of_the_image(options: dict[str, Any]) -> None:
    model = tiny_segmenter(**options)
    sizes = [(1, 1), (1, 130), (130, 1), (2, 3), (17, 31), (32, 32), (33, 64), (63, 65), (129, 127)]
    for height, width in sizes:
        assert model(torch.randn(1, 3, height, width)).shape == (1, 3, height, width)


def test_accepts_sampled_sizes_up_to_130(tiny: Segmenter) -> None:
    for height, width in itertools.product(range(1, 131, 21), range(1, 131, 19)):
        with torch.inference_mode():
            assert tiny(torch.randn(1, 3, height, width)).shape == (1, 3, height, width)


@pytest.mark.slow
def test_accepts_all_sizes_up_to_130(tiny: Segmenter) -> None:
    for height, width in itertools.product(range(1, 131), repeat=2):
        with torch.inference_mode():
            assert tiny(torch.randn(1, 3, height, width)).shape == (1, 3, height, width)


@pytest.mark.parametrize("head", ["deeplabv3plus", "deeplabv3", "deeplabv2", "pspnet"])
def test_resize_upsampling_gives_the_size_of_the_image(head: str) -> None:
    model = tiny_segmenter(head=head, upsample="resize")
    assert model(torch.randn(2, 3, 37, 50)).shape == (2, 3, 37, 50)


def test_small_images_are_padded_with_their_border_pixels() -> None:
    model = tiny_segmenter(backbone="vgg11", head="deeplabv3", output_stride=32)
    assert model.backbone.geometry.smallest() == (32, 32)
    x = torch.randn(1, 3, 5, 40)
    padded = torch.cat([x, x[:, :, -1:].expand(-1, -1, 27, -1)], 2)
    torch.testing.assert_close(model(x), model(padded)[:, :, :5])


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride_determines_strides_and_rates(output_stride: int) -> None:
    model = tiny_segmenter(output_stride=output_stride)
    assert model.backbone.geometry.stride == (output_stride, output_stride)
    assert model.backbone.stage_info(model.fine_stage).geometry.stride == (4, 4)
    rates = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}[output_stride]
    assert isinstance(model.head.context, ASPP)
    assert model.head.context.rates == rates


def test_map_sizes_are_those_of_the_papers() -> None:
    stride_16, stride_8 = tiny_segmenter(), tiny_segmenter(output_stride=8)
    assert stride_16.backbone.geometry.map_size(513, 513) == (33, 33)
    assert stride_8.backbone.geometry.map_size(513, 321) == (65, 41)
    assert stride_8.backbone.stage_info(stride_8.fine_stage).geometry.map_size(513, 513) == (129, 129)


def test_rejects_output_strides_the_network_does_not_support() -> None:
    with pytest.raises(ValueError, match=r"output_stride: expected 32 for vgg11, .* got 16; .*resnet50"):
        tiny_segmenter(backbone="vgg11", output_stride=16, head="deeplabv3")
    with pytest.raises(ValueError, match="output_stride: expected 8, 16 or 32, got 4"):
        tiny_segmenter(output_stride=4)
    with pytest.raises(ValueError, match="output_stride: expected 32 for zf5, got 16; use a timm network"):
        tiny_segmenter(backbone="zf5", head="deeplabv3")
    with pytest.raises(
        ValueError, match="output_stride: expected 16, the stride of the last feature map of zf5, got 32"
    ):
        tiny_segmenter(backbone="zf5", head="deeplabv3", output_stride=32)


def test_context_of_the_same_image_does_not_change_the_logits(tiny: Segmenter) -> None:
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(tiny(x, tiny.context_of(x)), tiny(x))
    assert not torch.allclose(tiny(x, tiny.context_of(x) + 1), tiny(x))


@pytest.mark.parametrize(
    "options", [{"context": "ppm"}, {"head": "pspnet"}, {"head": "deeplabv2"}, {"image_level": False}]
)
def test_rejects_context_without_an_image_level_branch(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="context: expected a model whose ASPP has an image-level branch"):
        tiny_segmenter(**options).context_of(torch.randn(1, 3, 64, 64))


def test_batch_matches_single_images(tiny: Segmenter) -> None:
    x = torch.randn(3, 3, 50, 70)
    batch = tiny(x)
    for index in range(3):
        torch.testing.assert_close(batch[index : index + 1], tiny(x[index : index + 1]), rtol=1e-4, atol=1e-5)


def test_shifting_an_image_by_the_stride_shifts_its_logits() -> None:
    """Upsampling by the ratio of the sizes would shift logits by fractions of a cell."""
    model = tiny_segmenter(context="none")
    x = torch.randn(1, 3, 320, 320)
    logits, shifted = model(x), model(x[:, :, 32:, 32:])
    torch.testing.assert_close(shifted[:, :, 112:160, 112:160], logits[:, :, 144:192, 144:192], rtol=1e-3, atol=1e-4)


def test_saved_and_loaded_segmenter_gives_the_same_logits(tmp_path: Path) -> None:
    config = replace(TINY, colours=((0, 0, 0), (255, 0, 0), (0, 0, 255)), ignore=(11,), rates=(2, 4))
    model = create_segmenter(config, "none").eval()
    save(model, tmp_path)
    loaded = sppnet.load(tmp_path)
    assert isinstance(loaded, Segmenter)
    assert loaded.config == config
    x = torch.randn(1, 3, 45, 64)
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "deeplabv4"}, "head: expected one of .*, got 'deeplabv4'; did you mean 'deeplabv"),
        ({"context": "asp"}, "context: expected one of aspp, ppm, none, got 'asp'; did you mean 'aspp'"),
        ({"context": "ppm", "head": "deeplabv3"}, "context: expected 'aspp' for deeplabv3, got 'ppm'"),
        ({"upsample": "nearest"}, "upsample: expected one of aligned, resize, got 'nearest'"),
        ({"norm": "layer"}, "norm: expected one of safe, batch, group, got 'layer'"),
        ({"classes": ()}, "classes: expected one or more distinct names, got 0 names, 0 of them distinct"),
        ({"classes": ("sky", "sky")}, "classes: expected one or more distinct names, got 2 names, 1 of them distinct"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_illegal_configurations(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_segmenter(**options)


def test_pixels_are_normalized_for_the_backbone(tiny: Segmenter) -> None:
    x = tiny.pixels(Image.new("RGB", (5, 4), (255, 0, 51)))
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(tiny.backbone.mean)) / torch.tensor(tiny.backbone.std)
    torch.testing.assert_close(x, expected.view(1, 3, 1, 1).expand(1, 3, 4, 5))
