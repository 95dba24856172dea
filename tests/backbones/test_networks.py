"""Transformers, hybrids and modules as backbones, compared with timm and with slow references."""

import functools
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from sppnet import Backbone, PaddingError, RegionEncoder, create_backbone, load, save
from sppnet.backbones.networks import stage_of_stride
from sppnet.data.images import load_image

SWIN = "swin_tiny_patch4_window7_224"
ODD_SIZES = [(17, 33), (49, 31), (65, 90), (70, 70), (101, 53), (111, 160), (128, 47), (150, 99), (161, 161), (30, 200)]


@functools.cache
def random_backbone(name: str) -> Backbone:
    return create_backbone(name, weights=None).eval()


def slow_map(network: Any, x: Tensor) -> Tensor:
    """Return the map of a ViT: every patch by itself, positions resampled to the grid, blocks, norm."""
    side = network.patch_embed.patch_size[0]
    rows, columns = -(-x.shape[2] // side), -(-x.shape[3] // side)
    canvas = torch.zeros(len(x), 3, rows * side, columns * side)
    canvas[:, :, : x.shape[2], : x.shape[3]] = x
    weight, bias = network.patch_embed.proj.weight.flatten(1).T, network.patch_embed.proj.bias
    patches = [
        canvas[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side].flatten(1)
        for row in range(rows)
        for column in range(columns)
    ]
    tokens = torch.stack([patch @ weight + bias for patch in patches], 1)
    prefix = [token.expand(len(x), -1, -1) for token in (network.cls_token, network.reg_token) if token is not None]
    count = sum(token.shape[1] for token in prefix)
    separate = network.no_embed_class
    positions = resample_abs_pos_embed(network.pos_embed, [rows, columns], num_prefix_tokens=0 if separate else count)
    tokens = torch.cat([*prefix, tokens], 1) + F.pad(positions, (0, 0, count if separate else 0, 0))
    tokens = network.norm(network.blocks(network.norm_pre(tokens)))
    data: Tensor = tokens[:, count:].transpose(1, 2).reshape(len(x), -1, rows, columns)
    return data


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",  # class token
        "test_vit3",  # register, attention pooling
        "vit_tiny_r_s16_p8_224",  # hybrid
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        SWIN,
        "test_maxvit",
    ],
)
def test_map_at_the_training_size_equals_timm(name: str) -> None:
    """timm's own network has a fixed input size."""
    options: dict[str, Any] = {"img_size": 224} if "dinov2" in name else {}  # 518 pixels would take long
    network = timm.create_model(name, **options).eval()
    backbone = create_backbone(name, weights=None).eval() if options else random_backbone(name)
    state = network.state_dict()
    if options:  # positions of the training grid: interpolated by the backbone, fixed in timm's network
        backbone.network.patch_embed.grid_size = network.patch_embed.grid_size  # type: ignore[union-attr]
        backbone.network.pos_embed = nn.Parameter(state["pos_embed"])
    backbone.network.load_state_dict({key: state[key] for key in backbone.network.state_dict()})
    side = options.get("img_size", backbone.side)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        features, expected = backbone(x), network.forward_features(x)  # type: ignore[operator]
    rows, columns = backbone.geometry.map_size(side, side)
    if expected.ndim == 3:
        prefix = expected.shape[1] - rows * columns
        assert (0 if features.prefix is None else features.prefix.shape[1]) == prefix
        if features.prefix is not None:
            torch.testing.assert_close(features.prefix, expected[:, :prefix])
        expected = expected[:, prefix:].unflatten(1, (rows, columns))
    if expected.shape[1] != backbone.channels:
        expected = expected.permute(0, 3, 1, 2)
    torch.testing.assert_close(features.data, expected)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "vit_wee_patch16_reg1_gap_256"])
def test_vit_maps_at_odd_sizes_equal_a_slow_reference(name: str) -> None:
    backbone = create_backbone(name, weights=None).eval()
    with torch.no_grad():
        for parameter in backbone.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # positions and tokens are initialized near zero
        for height, width in ODD_SIZES:
            x = torch.randn(2, 3, height, width)
            features = backbone(x)
            torch.testing.assert_close(features.data, slow_map(backbone.network, x), rtol=1e-4, atol=1e-4)
            assert features.data.shape[2:] == backbone.geometry.map_size(height, width)


def test_swin_maps_at_odd_sizes_equal_networks_of_fixed_size() -> None:
    """Of images whose last map is at least one window; timm's fixed network takes smaller windows for others."""
    backbone = random_backbone(SWIN)
    for height, width in [(224, 240), (250, 300)]:
        padded = -(-height // 32) * 32, -(-width // 32) * 32
        fixed = timm.create_model(SWIN, img_size=padded, num_classes=0).eval()
        fixed.load_state_dict(backbone.network.state_dict())
        for block in fixed.layers[-1].blocks:  # type: ignore[index, union-attr]
            block.shift_size, block.attn_mask = (0, 0), None  # as at the training size, where the map is one window
        x = torch.randn(1, 3, height, width)
        with torch.no_grad():
            expected = fixed.forward_features(F.pad(x, (0, padded[1] - width, 0, padded[0] - height)))  # type: ignore[operator]
            torch.testing.assert_close(backbone(x).data, expected.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "stage", "stride", "offset", "multiple"),
    [
        ("test_vit", None, 16, 7.5, 16),
        ("test_vit", 2, 16, 7.5, 16),
        ("vit_small_patch14_dinov2", None, 14, 6.5, 14),
        (SWIN, 1, 8, 3.5, 8),
        ("pvt_v2_b0", None, 32, 0, 1),
        ("dla34", None, 32, 0, 32),
        ("tresnet_m", 0, 4, 1.5, 32),
        ("test_maxvit", None, 32, 0, 160),
    ],
)
def test_geometry_of_transformers_and_of_networks_for_multiples(
    name: str, stage: int | None, stride: int, offset: float, multiple: int
) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, stage, None)
        features = backbone(torch.empty(2, 3, 300, 476))
    assert (features.stride, features.offset, backbone.multiple) == ((stride, stride), (offset, offset), multiple)
    assert features.data.shape == (2, backbone.channels, -(-300 // stride), -(-476 // stride))


@pytest.mark.parametrize(("name", "stage"), [("test_vit", None), ("test_vit3", 4), (SWIN, None), ("dla34", -2)])
def test_pixels_at_a_cell_center_affect_that_cell_most(name: str, stage: int | None) -> None:
    backbone = random_backbone(name) if stage is None else create_backbone(name, stage, None).eval()
    x = torch.zeros(1, 3, 230, 301)
    (vertical, horizontal), (top, left) = backbone.geometry.stride, backbone.geometry.offset(230, 301)
    for row, column in [(1, 2), (3, 5), (2, 4)]:
        y, zero = round(top + row * vertical), round(left + column * horizontal)
        changed = x.clone()
        changed[:, :, y - 1 : y + 2, zero - 1 : zero + 2] = 1
        with torch.no_grad():
            change = (backbone(changed).data - backbone(x).data).square().sum(1)[0]
        assert divmod(int(change.argmax()), change.shape[1]) == (row, column)


def test_vit_cells_depend_on_the_pixels_of_their_patch() -> None:
    """Without attention, the gradient of a cell covers exactly its patch, whose center the geometry states."""
    backbone = create_backbone("test_vit", weights=None).eval()
    backbone.network.blocks = nn.Sequential(nn.Identity())
    x = torch.randn(1, 3, 75, 90, requires_grad=True)
    (gradient,) = torch.autograd.grad(backbone(x).data[0, :, 2, 3].square().sum(), x)
    rows, columns = (gradient[0].abs().sum((0, axis)).nonzero().flatten() for axis in (2, 1))
    assert (rows.tolist(), columns.tolist()) == (list(range(32, 48)), list(range(48, 64)))
    assert rows.float().mean() == backbone.geometry.offset(75, 90)[0] + 2 * 16
    assert columns.float().mean() == backbone.geometry.offset(75, 90)[1] + 3 * 16


def test_prefix_tokens_are_separate() -> None:
    x = torch.randn(2, 3, 50, 60)
    shapes = {}
    for name in ("test_vit", "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224", "test_resnet"):
        with torch.device("meta"):
            prefix = create_backbone(name, weights=None)(x.to("meta")).prefix
        shapes[name] = None if prefix is None else tuple(prefix.shape)
    assert shapes == {
        "test_vit": (2, 1, 64),
        "vit_small_patch16_dinov3": (2, 5, 384),
        "vit_base_patch16_siglip_224": None,
        "test_resnet": None,
    }


def test_intermediate_stage_and_finer_map_of_swin() -> None:
    torch.manual_seed(0)
    backbone = create_backbone(SWIN, -1, None).eval()
    x = torch.randn(1, 3, 70, 100)
    with torch.no_grad():
        data, fine = backbone.maps(x, (backbone.stage, backbone.stage_within(4)))
        padded = F.pad(x, (0, 28, 0, 26))
        expected = backbone.network.forward_intermediates(padded, intermediates_only=True)  # type: ignore[operator]
    assert (fine.stride, fine.offset, fine.data.shape) == ((4, 4), (1.5, 1.5), (1, 96, 18, 25))
    torch.testing.assert_close(data.data, expected[-1])
    torch.testing.assert_close(fine.data, expected[0][:, :, :18, :25])


def test_rejects_padded_batches_of_different_sizes() -> None:
    backbone = create_backbone("test_vit", weights=None)
    x = torch.randn(2, 3, 64, 80)
    assert backbone(x, [(64, 80), (64, 80)]).sizes == ((4, 5), (4, 5))
    message = (
        "images of one size for test_vit, which takes multiples of 16 pixels .*, got 2 sizes; use batches of images"
    )
    with pytest.raises(PaddingError, match=message):
        backbone(x, [(64, 80), (64, 64)])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mixer_s32_224", "it only takes images of 224 x 224 pixels"),
        ("beit_base_patch16_224", "it only takes images of 224 x 224 pixels"),
        ("test_coatnet", "it only takes images of 160 x 160 pixels"),
        ("gmixer_12_224", "it only takes images of 224 x 224 pixels"),
    ],
)
def test_names_the_reason_why_a_network_has_no_map(name: str, reason: str) -> None:
    message = rf"backbone: expected .* for images of different sizes, got {name} \(last feature map\): .*{reason}$"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_backbone(name, weights=None)


def test_plain_transformers_have_one_stride() -> None:
    assert stage_of_stride("test_vit", 16) is None
    assert stage_of_stride(SWIN, 16) == 2
    with torch.device("meta"):
        assert create_backbone("test_vit", -1, None, output_stride=16).stage == 5
        with pytest.raises(ValueError, match="output_stride: expected 32 for test_vit, which has no dilated"):
            create_backbone("test_vit", weights=None, output_stride=8)
    with pytest.raises(ValueError, match=r"stride: expected at least 16 \(the finest map of test_vit\), got 8"):
        stage_of_stride("test_vit", 8)


class Patches(nn.Module):
    """A user's network: patches by a reshape and a matrix product, so that no window can be traced."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.project = nn.Linear(3 * side * side, 8)

    def forward(self, x: Tensor) -> Tensor:
        side = self.side
        data: Tensor = x.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3)
        return self.project(data).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def test_accepts_modules() -> None:
    traced = create_backbone(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1)))
    assert (traced.name, traced.named, traced.channels) == ("Sequential", False, 6)
    assert traced(torch.randn(1, 3, 33, 50)).data.shape == (1, 6, 9, 13)
    network = timm.create_model("test_vit", num_classes=7)
    backbone = create_backbone(network, 3)
    assert (backbone.network, backbone.name, backbone.stage, backbone.side) == (network, "VisionTransformer", 3, 160)
    declared = create_backbone(Patches(10), stride=10)
    features = declared(torch.ones(1, 3, 35, 50))
    assert (features.data.shape, features.stride, features.offset) == ((1, 8, 4, 5), (10, 10), (4.5, 4.5))
    assert torch.equal(features.data[:, :, :3], declared.network(torch.ones(1, 3, 30, 50)))
    assert (declared.mean, declared.side) == ((0.485, 0.456, 0.406), 224)


def test_rejects_wrong_arguments_for_modules() -> None:
    with pytest.raises(ValueError, match=r"stride: expected .* maps \(1, C, 4, 5\) of images 64 x 80, got .* Patches"):
        create_backbone(Patches(10), stride=16)
    with pytest.raises(ValueError, match="stride: expected at least 1, got 0"):
        create_backbone(Patches(10), stride=0)
    with pytest.raises(ValueError, match="stride: expected None for test_vit, whose layers are traced, got 16"):
        create_backbone("test_vit", weights=None, stride=16)
    with pytest.raises(ValueError, match=r"weights: expected 'auto' for a module, which keeps its own .*, got 'hub'"):
        create_backbone(Patches(10), weights="hub", stride=10)
    with pytest.raises(ValueError, match=r"stage: expected None for Patches, which does not have timm's .*, got 1"):
        create_backbone(Patches(10), 1, stride=10)
    with pytest.raises(ValueError, match=r"imply a first cell centered on pixel \(-19\.0, -19\.0\), outside the image"):
        create_backbone(nn.Conv2d(3, 1, 3, padding=20))
    with pytest.raises(ValueError, match=r"got Linear \(last feature map\): it does not accept an image of 256 x 256"):
        create_backbone(nn.Linear(3, 4))


def test_models_with_modules_cannot_be_saved(tmp_path: Path) -> None:
    encoder = RegionEncoder(timm.create_model("test_vit"), levels=(2, 1), scales=(100,))
    with pytest.raises(
        ValueError, match=r"backbone: expected a network with a name .*, got a module of class VisionTr"
    ):
        save(encoder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_region_encoder_rounds_to_patches_and_keeps_boxes_true() -> None:
    encoder = RegionEncoder(create_backbone("test_vit", weights=None), levels=(1,), scales=(100,))
    assert encoder.network_size((300, 476), 100) == (96, 160)  # 100 x 158.7
    image = torch.rand(3, 300, 476)
    boxes = torch.tensor([[0.0, 0, 476, 300], [14.875, 12.5, 74, 60]])  # the second covers the cells 1..1, 2..1
    whole, part = encoder(image, [boxes.tolist()])[0]
    data = encoder.prepare(load_image(image)).maps[0].data[0]
    torch.testing.assert_close(whole, data.amax((1, 2)))
    cells = encoder.cells(boxes[1], (300, 476))
    left, top, right, bottom = cells.cells
    torch.testing.assert_close(part, data[:, top:bottom, left:right].amax((1, 2)))
    assert (cells.map_size, cells.network_size) == ((6, 10), (96, 160))


def test_names_the_network_that_a_file_fits(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit2", num_classes=5).state_dict(), file)
    message = r"weights\.safetensors lacks \d+ of \d+ tensors \(.*it belongs to another network; it fits test_vit2$"
    with pytest.raises(ValueError, match=message):
        create_backbone("test_vit", weights=file)
    file = tmp_path / "test_resnet.safetensors"  # of another family, found by the name of the file
    save_file(timm.create_model("test_resnet").state_dict(), file)
    with pytest.raises(ValueError, match=r"it fits test_resnet$"):
        create_backbone("test_vit", weights=file)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(
        ValueError, match=r"lacks \d+ of \d+ tensors .*; it has a instead; it belongs to another network$"
    ):
        create_backbone("test_vit2", weights=file)


def test_hub_offline_is_a_plain_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        OSError, match=r"weights: test_vit cannot be downloaded from the hub: .* safetensors file, or 'none'"
    ):
        create_backbone("test_vit", weights="hub")


def test_saved_and_reloaded_vit_gives_equal_vectors(tmp_path: Path) -> None:
    encoder = RegionEncoder(create_backbone("test_vit2", weights=None), levels=(2, 1), scales=(64,))
    save(encoder, tmp_path)
    image, boxes = torch.rand(3, 70, 90), [[[5.0, 6, 60, 50]]]
    loaded = load(tmp_path)
    assert isinstance(loaded, RegionEncoder)
    assert isinstance(loaded.backbone, Backbone)
    assert torch.equal(loaded(image, boxes)[0], encoder(image, boxes)[0])
