"""Backbones: names, stages, weights, image sizes and their error messages."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from sppnet import Backbone, create_backbone
from sppnet.ops.pyramid import Sizes


@pytest.fixture(scope="module")
def zf5() -> Backbone:
    return create_backbone("zf5").eval()


def test_unknown_name_suggests_close_matches() -> None:
    with pytest.raises(
        ValueError, match=r"backbone: expected a timm network .*, got 'resnet81'; did you mean .*resnet"
    ):
        create_backbone("resnet81")
    with pytest.raises(ValueError, match=r"got 'zf-5'; did you mean zf5"):
        create_backbone("zf-5")
    with pytest.raises(ValueError, match=r"got 'qqqqqqqq'; see timm.list_models\(\)"):
        create_backbone("qqqqqqqq", weights=None)


@pytest.mark.parametrize("stage", [5, -6, 99])
def test_rejects_stage_out_of_range(stage: int) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=rf"stage: expected -5 to 4 for resnet18, got {stage}$"):
        create_backbone("resnet18", stage, None)


def test_paper_networks_have_only_the_last_stage() -> None:
    with torch.device("meta"):
        assert create_backbone("zf5", -1).stage is None
        with pytest.raises(ValueError, match=r"stage: expected None or -1 for zf5, which has one feature map, got 0"):
            create_backbone("zf5", 0)


@pytest.mark.parametrize(
    ("stage", "channels", "stride", "index"),
    [(None, 512, 32, None), (-1, 512, 32, 4), (0, 64, 2, 0), (3, 256, 16, 3), (-2, 256, 16, 3)],
)
def test_resnet18_stages(stage: int | None, channels: int, stride: int, index: int | None) -> None:
    with torch.device("meta"):
        backbone = create_backbone("resnet18", stage, None)
        features = backbone(torch.empty(2, 3, 65, 96))
    assert (backbone.channels, backbone.stage) == (channels, index)
    assert features.stride == backbone.geometry.stride == (stride, stride)
    assert features.data.shape == (2, channels, -(-65 // stride), -(-96 // stride))


@pytest.mark.parametrize(("stage", "channels"), [(0, 16), (1, 24), (2, 40), (3, 112), (4, 320), (None, 1280)])
def test_default_backbone_stages(stage: int | None, channels: int) -> None:
    with torch.device("meta"):
        backbone = create_backbone(stage=stage, weights=None)
        features = backbone(torch.empty(1, 3, 100, 75))
    stride = 32 if stage is None else 2 ** (stage + 1)
    assert (backbone.name, backbone.channels) == ("tf_efficientnet_lite0", channels)
    assert features.stride == (stride, stride)
    assert features.data.shape == (1, channels, -(-100 // stride), -(-75 // stride))


def test_preprocessing_constants() -> None:
    with torch.device("meta"):
        default, paper = create_backbone(weights=None), create_backbone("zf5")
    assert default.mean == default.std == (0.5, 0.5, 0.5)
    assert (default.interpolation, default.side) == ("bicubic", 224)
    assert paper.mean == (128 / 255, 128 / 255, 128 / 255)
    assert paper.std == (1 / 255, 1 / 255, 1 / 255)
    assert (paper.interpolation, paper.side) == ("bilinear", 224)


@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("head", [True, False])
def test_loads_weight_files_with_and_without_classifier(stage: int | None, head: bool, tmp_path: Path) -> None:
    """The truncated network gives the maps of the full timm network, at a size that was not traced."""
    full = timm.create_model("test_resnet", num_classes=7 if head else 0).eval()
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    backbone = create_backbone("test_resnet", stage, tmp_path / "full.safetensors").eval()
    x = torch.randn(2, 3, 47, 90)
    expected = full.forward_features(x) if stage is None else full.forward_intermediates(x)[1][stage]  # type: ignore[operator]
    assert torch.equal(backbone(x).data, expected)
    assert backbone.channels == expected.shape[1]


def test_creation_keeps_training_mode_and_statistics() -> None:
    backbone = create_backbone("test_resnet", weights=None)
    assert all(module.training for module in backbone.modules())
    assert backbone.network.bn1.num_batches_tracked == 0  # type: ignore[union-attr]


def test_same_seed_gives_same_random_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(create_backbone("test_resnet", weights="none").state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_rejects_unavailable_weights() -> None:
    with pytest.raises(ValueError, match=r"weights: expected 'hub'.*'none'.* for resnet18, got 'auto'"):
        create_backbone("resnet18")
    with pytest.raises(ValueError, match=r"weights: expected 'hub', 'none' .* for test_resnet, got 'embedded'"):
        create_backbone("test_resnet", weights="embedded")
    for source in ("hub", "embedded"):
        with pytest.raises(ValueError, match=f"weights: expected 'none' or .* for convnet5, got '{source}'"):
            create_backbone("convnet5", weights=source)


def test_rejects_weights_of_another_network(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    state = timm.create_model("test_resnet").state_dict()
    save_file(timm.create_model("test_efficientnet").state_dict(), file)
    with pytest.raises(ValueError, match=r"weights\.safetensors lacks \d+ of \d+ tensors .*belongs to another network"):
        create_backbone("test_resnet", weights=file)
    save_file({**state, "layer1.1.conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"has unexpected tensors \(1: layer1\.1\.conv1\.weight"):
        create_backbone("test_resnet", weights=file)
    save_file({**state, "conv1.0.weight": torch.zeros(5, 3, 1, 1)}, file)
    with pytest.raises(ValueError, match=r"expected shape \(16, 3, 3, 3\) for conv1\.0\.weight, got \(5, 3, 1, 1\)"):
        create_backbone("test_resnet", weights=file)


def test_rejects_overfeat7_weights_for_overfeat5(tmp_path: Path) -> None:
    """Overfeat-7 has every tensor of Overfeat-5, with the same shapes."""
    file = tmp_path / "overfeat7.safetensors"
    save_file(create_backbone("overfeat7").network.state_dict(), file)
    with pytest.raises(ValueError, match=r"has unexpected tensors \(4: conv6\.bias, conv6\.weight, conv7"):
        create_backbone("overfeat5", weights=file)


def test_rejects_missing_and_non_safetensors_files(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"<html>" * 9), ("short", b"\x08\0\0\0\0\0\0\0{}")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"weights: .*{name} is not a safetensors file"):
            create_backbone("test_resnet", weights=tmp_path / name)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "pickle.pth")
    with pytest.raises(
        ValueError, match=r"pickle\.pth is not a safetensors file: .*convert .* with safetensors\.torch"
    ):
        create_backbone("test_resnet", weights=tmp_path / "pickle.pth")
    for missing in (tmp_path / "nothing", tmp_path, "embeded"):
        with pytest.raises(ValueError, match=rf"weights: expected an existing safetensors file, got {missing}$"):
            create_backbone("test_resnet", weights=missing)


def test_rejects_images_that_are_too_small(zf5: Backbone) -> None:
    assert zf5(torch.zeros(1, 3, 31, 31)).data.shape == (1, 256, 1, 1)
    for height, width in ((30, 31), (31, 30), (0, 224)):
        message = rf"x: expected images of at least 31 x 31 pixels \(height x width\) .* zf5, got {height} x {width}$"
        with pytest.raises(ValueError, match=message):
            zf5(torch.zeros(1, 3, height, width))
    with pytest.raises(ValueError, match=r"at least 31 x 31 pixels .* for backbone zf5, got 224 x 30"):
        zf5(torch.zeros(2, 3, 224, 224), [(224, 224), (224, 30)])


@pytest.mark.parametrize("as_tensor", [True, False])
def test_padded_batch_returns_map_sizes(zf5: Backbone, as_tensor: bool) -> None:
    areas = [(180, 224), (224, 192), (31, 31)]
    sizes: Sizes = torch.tensor(areas) if as_tensor else areas
    features = zf5(torch.zeros(3, 3, 224, 240), sizes)
    assert features.data.shape == (3, 256, 13, 14)
    assert features.sizes == ((10, 13), (13, 11), (1, 1))
    assert features.stride == (16, 16)
    assert features.offset == (20, 20)
    assert zf5(torch.zeros(1, 3, 224, 240)).sizes is None


def test_empty_batch_gives_empty_map(zf5: Backbone) -> None:
    assert zf5(torch.zeros(0, 3, 224, 240)).data.shape == (0, 256, 13, 14)
    assert zf5(torch.zeros(0, 3, 224, 240), []).sizes == ()


def test_rejects_wrong_images_and_sizes(zf5: Backbone, unchecked: None) -> None:
    for shape in ((3, 64, 64), (1, 4, 64, 64), (1, 64, 64, 3)):
        with pytest.raises(ValueError, match=r"x: expected images \(N, 3, H, W\), got shape \(" + str(shape)[1:-1]):
            zf5(torch.zeros(shape))
    for dtype in (torch.uint8, torch.int64):
        with pytest.raises(TypeError, match=f"x: expected normalized images of a floating-point dtype, got {dtype}"):
            zf5(torch.zeros(1, 3, 64, 64, dtype=dtype))
    with pytest.raises(ValueError, match=r"sizes: expected one \(height, width\) for each of the 1 images, got 2"):
        zf5(torch.zeros(1, 3, 64, 64), [(64, 64), (64, 64)])
    with pytest.raises(
        ValueError, match=r"sizes\[1\]: expected at most 64 x 80 pixels \(height x width\) as in x, got 64 x 81"
    ):
        zf5(torch.zeros(2, 3, 64, 80), [(64, 80), (64, 81)])


def test_maps_of_several_stages_equal_those_of_single_ones() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", weights=None).eval()
    x = torch.randn(2, 3, 70, 90)
    maps = backbone.maps(x, (None, backbone.stage_within(8), backbone.check_stage(-1)))
    torch.manual_seed(0)
    fine = create_backbone("test_resnet", backbone.stage_within(8), None).eval()
    assert maps[1].stride == (8, 8)
    assert maps[1].data.shape[1] == backbone.stage_info(backbone.stage_within(8)).channels
    assert torch.equal(maps[1].data, fine(x).data)
    assert torch.equal(maps[0].data, backbone(x).data)
    assert torch.equal(maps[2].data, maps[0].data)  # a ResNet has no layers after its last stage


def test_maps_of_a_padded_batch_equal_those_of_its_images() -> None:
    backbone = create_backbone("test_resnet", weights=None).eval()
    x, sizes = torch.randn(2, 3, 70, 90), [(70, 50), (41, 90)]
    for stage, batch in zip((1, None), backbone.maps(x, (1, None), sizes), strict=True):
        assert batch.sizes is not None
        for index, ((height, width), (rows, columns)) in enumerate(zip(sizes, batch.sizes, strict=True)):
            (alone,) = backbone.maps(x[index : index + 1, :, :height, :width], (stage,))
            torch.testing.assert_close(batch.data[index : index + 1, :, :rows, :columns], alone.data)


def test_maps_checks_stages_and_images(zf5: Backbone, unchecked: None) -> None:
    with pytest.raises(ValueError, match="stage: expected None for zf5, which has one feature map, got 0"):
        zf5.stage_within(8)
    backbone = create_backbone("test_resnet", 2, None)
    with pytest.raises(ValueError, match="stage: expected -3 to 2 for test_resnet, got 3"):
        backbone.check_stage(3)
    with pytest.raises(ValueError, match=r"x: expected images \(N, 3, H, W\), got shape \(1, 4, 64, 64\)"):
        backbone.maps(torch.zeros(1, 4, 64, 64), (1,))
    with pytest.raises(TypeError, match=r"expected normalized images of a floating-point dtype, got torch\.uint8"):
        backbone.maps(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), (1,))
