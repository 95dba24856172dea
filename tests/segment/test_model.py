import itertools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_resnet50

import sppnet
from sppnet.layers.aspp import ASPP
from sppnet.layers.norms import SafeBatchNorm2d
from sppnet.layers.ppm import PyramidPoolingModule
from sppnet.registry import load_classifier
from sppnet.segment.model import Segmenter, SegmenterConfig, create_segmenter
from sppnet.segment.torchvision_weights import from_torchvision
from sppnet.training.run import save_run

TINY = SegmenterConfig(("ground", "disc", "square"), "test_efficientnet", width=16)
HEADS: tuple[dict[str, Any], ...] = (
    {},
    {"context": "ppm"},
    {"context": "none"},
    {"head": "deeplabv3"},
    {"head": "deeplabv2", "output_stride": 8},
    {"head": "pspnet", "output_stride": 8},
)


def build(**options: Any) -> Segmenter:
    return create_segmenter(replace(TINY, **options), "none").eval()


@pytest.fixture(scope="module")
def tiny() -> Segmenter:
    torch.manual_seed(0)
    return build()


@pytest.mark.parametrize("options", HEADS)
def test_every_head_answers_at_the_size_of_the_image(options: dict[str, Any]) -> None:
    model = build(**options)
    sizes = [(1, 1), (1, 130), (130, 1), (2, 3), (17, 31), (32, 32), (33, 64), (63, 65), (129, 127)]
    for height, width in sizes:
        assert model(torch.randn(1, 3, height, width)).shape == (1, 3, height, width)


def test_sampled_sizes_up_to_130(tiny: Segmenter) -> None:
    for height, width in itertools.product(range(1, 131, 21), range(1, 131, 19)):
        with torch.inference_mode():
            assert tiny(torch.randn(1, 3, height, width)).shape == (1, 3, height, width)


@pytest.mark.slow
def test_all_sizes_up_to_130(tiny: Segmenter) -> None:
    for height, width in itertools.product(range(1, 131), repeat=2):
        with torch.inference_mode():
            assert tiny(torch.randn(1, 3, height, width)).shape == (1, 3, height, width)


@pytest.mark.parametrize("head", ["deeplabv3plus", "deeplabv3", "deeplabv2", "pspnet"])
def test_torchvision_like_resizing_keeps_the_size_too(head: str) -> None:
    model = build(head=head, upsample="resize")
    assert model(torch.randn(2, 3, 37, 50)).shape == (2, 3, 37, 50)


def test_images_that_the_backbone_is_too_large_for_are_continued_at_their_border() -> None:
    model = build(backbone="vgg11", head="deeplabv3", output_stride=32)
    least = model.backbone.geometry.smallest()
    assert least == (32, 32)
    x = torch.randn(1, 3, 5, 40)
    continued = torch.cat([x, x[:, :, -1:].expand(-1, -1, 27, -1)], 2)
    torch.testing.assert_close(model(x), model(continued)[:, :, :5])


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_strides(output_stride: int) -> None:
    model = build(output_stride=output_stride)
    assert model.backbone.geometry.stride == (output_stride, output_stride)
    assert model.backbone.fine_geometry.stride == (4, 4)
    rates = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}[output_stride]
    assert isinstance(model.head.context, ASPP)
    assert model.head.context.rates == rates


def test_map_sides_of_the_papers() -> None:
    """513 pixels make 33 cells at output stride 16, 65 at 8 and 129 at 4; 321 make 41 at 8."""
    sixteen, eight = build(), build(output_stride=8)
    assert sixteen.backbone.geometry.map_size(513, 513) == (33, 33)
    assert eight.backbone.geometry.map_size(513, 321) == (65, 41)
    assert eight.backbone.fine_geometry.map_size(513, 513) == (129, 129)


def test_an_output_stride_that_a_network_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"output_stride: timm has no form of vgg11 with output stride 16; .*resnet50"):
        build(backbone="vgg11", output_stride=16, head="deeplabv3")
    with pytest.raises(ValueError, match="output_stride: expected 8, 16 or 32; got 4"):
        build(output_stride=4)
    with pytest.raises(ValueError, match="output_stride: zf5 has one map and no atrous form"):
        build(backbone="zf5", head="deeplabv3")
    with pytest.raises(ValueError, match="output_stride: the last map of zf5 has stride 16; got 32"):
        build(backbone="zf5", head="deeplabv3", output_stride=32)


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.filterwarnings("ignore:ASPP")
def test_every_head_trains_at_batch_1(options: dict[str, Any]) -> None:
    model = build(**options).train()
    for size in ((33, 33), (40, 70)):
        loss = F.cross_entropy(model(torch.randn(1, 3, *size)), torch.zeros(1, *size, dtype=torch.long))
        loss.backward()
        assert loss.isfinite()
        assert all(one.grad is not None and one.grad.isfinite().all() for one in model.head.parameters())


def test_heads_have_the_modules_of_their_papers() -> None:
    plus, v3, v2, psp = (build(head=head) for head in ("deeplabv3plus", "deeplabv3", "deeplabv2", "pspnet"))
    assert isinstance(plus.head.context, ASPP)
    assert plus.head.fine is not None
    assert plus.head.fine[0].out_channels == 48  # type: ignore[index]
    assert plus.head.classify[0][0].in_channels == 16 + 48  # type: ignore[index]
    assert [len(plus.head.classify), len(v3.head.classify)] == [3, 1]  # type: ignore[arg-type]
    assert isinstance(v2.head.context, ASPP)
    assert v2.head.context.project is None
    assert isinstance(v2.head.classify, nn.Identity)
    assert isinstance(psp.head.context, nn.Sequential)
    assert isinstance(psp.head.context[0], PyramidPoolingModule)
    assert any(isinstance(layer, SafeBatchNorm2d) for layer in plus.head.modules())


def test_context_of_the_image_itself_changes_nothing(tiny: Segmenter) -> None:
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(tiny(x, tiny.context_of(x)), tiny(x))
    assert not torch.allclose(tiny(x, tiny.context_of(x) + 1), tiny(x))


@pytest.mark.parametrize(
    "options", [{"context": "ppm"}, {"head": "pspnet"}, {"head": "deeplabv2"}, {"image_level": False}]
)
def test_a_context_needs_an_image_level_branch(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="context: a global context needs ASPP with an image-level branch"):
        build(**options).context_of(torch.randn(1, 3, 64, 64))


def test_an_answer_does_not_depend_on_what_shares_its_batch(tiny: Segmenter) -> None:
    x = torch.randn(3, 3, 50, 70)
    together = tiny(x)
    for index in range(3):
        torch.testing.assert_close(together[index : index + 1], tiny(x[index : index + 1]), rtol=1e-4, atol=1e-5)


def test_shifting_an_image_by_the_stride_shifts_its_answer() -> None:
    """Logits lie where the cells lie on the image; ratios of sides would shift them by parts of a cell."""
    model = build(context="none")
    x = torch.randn(1, 3, 320, 320)
    here, there = model(x), model(x[:, :, 32:, 32:])
    torch.testing.assert_close(there[:, :, 112:160, 112:160], here[:, :, 144:192, 144:192], rtol=1e-3, atol=1e-4)


def test_a_run_folder_gives_the_same_logits(tmp_path: Path) -> None:
    config = replace(TINY, colours=((0, 0, 0), (255, 0, 0), (0, 0, 255)), ignore=(11,), rates=(2, 4))
    model = create_segmenter(config, "none").eval()
    save_run(model, tmp_path)
    again = sppnet.load(tmp_path)
    assert isinstance(again, Segmenter)
    assert again.config == config
    x = torch.randn(1, 3, 45, 64)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"expected a classifier; .* holds a segmenter"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "deeplabv4"}, "head: expected one of .*; got 'deeplabv4'; did you mean 'deeplabv"),
        ({"context": "asp"}, "context: expected one of aspp, ppm, none; got 'asp'; did you mean 'aspp'"),
        ({"context": "ppm", "head": "deeplabv3"}, "context: only deeplabv3plus has a choice; got 'ppm' for deeplabv3"),
        ({"upsample": "nearest"}, "upsample: expected one of aligned, resize; got 'nearest'"),
        ({"norm": "layer"}, "norm: expected one of safe, batch, group; got 'layer'"),
        ({"classes": ()}, "classes: expected one or more different names; got 0, 0 of them different"),
        ({"classes": ("sky", "sky")}, "classes: expected one or more different names; got 2, 1 of them different"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_configuration_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_pixels_of_a_photograph_are_normalised_for_the_backbone(tiny: Segmenter) -> None:
    x = tiny.pixels(Image.new("RGB", (5, 4), (255, 0, 51)))
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(tiny.backbone.mean)) / torch.tensor(tiny.backbone.std)
    torch.testing.assert_close(x, expected.view(1, 3, 1, 1).expand(1, 3, 4, 5))


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.normal_(layer.bias, std=0.1)
    nn.init.normal_(model.classifier[4].weight, std=0.1)
    return model.eval()  # type: ignore[no-any-return]


def test_weights_of_torchvision_give_its_logits(theirs: nn.Module) -> None:
    ours = from_torchvision(theirs.state_dict())
    assert ours.config.classes[:2] == ("background", "aeroplane")
    for size in ((97, 130), (64, 65)):
        x = torch.randn(1, 3, *size)
        with torch.inference_mode():
            expected = theirs(x)["out"]
            assert expected.abs().max() > 0.3
            torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


def test_weights_of_torchvision_that_do_not_fit_are_refused(theirs: nn.Module) -> None:
    state = theirs.state_dict()
    with pytest.raises(ValueError, match="classes: expected 21 names, as many as the network has classes; got 2"):
        from_torchvision(state, ("a", "b"))
    with pytest.raises(ValueError, match="state: expected the tensors of torchvision's deeplabv3_resnet50"):
        from_torchvision({"conv.weight": torch.zeros(1)})
    less = {name: tensor for name, tensor in state.items() if name != "classifier.0.project.0.weight"}
    with pytest.raises(ValueError, match=r"torchvision lacks 1 of .*head\.context\.project\.0\.weight"):
        from_torchvision(less)
