"""Maps of padded batches compared with those of single images, for whole networks."""

import random
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor

from sppnet import Backbone, PaddingError, create_backbone
from sppnet.tools.doctor import check_padding

Area = tuple[int, int]

FAMILIES = [
    "resnet18", "mobilenetv2_035", "mobilenetv3_small_050", "efficientnet_b0", "tf_efficientnet_lite0",
    "tf_mobilenetv3_small_075", "convnext_atto", "convnextv2_atto", "regnetx_002", "regnety_002", "zf5",
]  # fmt: skip
PARTS = [("vgg11", 2), ("vgg11_bn", 1), ("resnet10t", 2), ("tf_efficientnet_lite0", 1), ("convnext_atto_ols", 0)]
LARGER = [
    "resnet50", "resnet50d", "resnext50_32x4d", "seresnet50", "wide_resnet50_2", "vgg16", "mobilenetv3_large_100",
    "efficientnet_b2", "tf_efficientnetv2_b0", "tf_mixnet_s", "convnext_tiny", "convnextv2_pico",
    "regnety_016", "densenet121", "eca_nfnet_l0", "dm_nfnet_f0", "inception_v3", "inception_v4", "xception41",
    "ghostnet_100", "rexnet_100", "resnetv2_50", "resnetv2_50d_gn", "resnet50_gn",
    "efficientnet_b0_g8_gn", "darknet53", "cspdarknet53", "cspresnet50", "ese_vovnet19b_dw", "hardcorenas_a",
    "mnasnet_050", "fbnetc_100", "repvgg_a0", "mobileone_s0", "res2net50_26w_4s", "selecsls42b", "starnet_s1",
    "poolformer_s12", "poolformerv2_s12", "inception_next_tiny", "rdnet_tiny", "fastvit_t8", "convnet5", "overfeat5",
    "overfeat7",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def draw_sizes(backbone: Backbone, count: int, spread: int) -> list[Area]:
    rng = random.Random(count)
    rows, columns = (max(*pair) for pair in zip(backbone.geometry.smallest(), backbone.geometry.stride, strict=True))
    sizes: set[Area] = set()
    while len(sizes) < count:
        sizes.add((rng.randint(rows, rows + spread), rng.randint(columns, columns + spread)))
    return sorted(sizes, key=lambda _: rng.random())


def pad(images: list[Tensor], value: float = 0.0, spare: Area = (0, 0)) -> Tensor:
    rows, columns = (max(image.shape[axis + 1] for image in images) + spare[axis] for axis in (0, 1))
    x = images[0].new_full((len(images), 3, rows, columns), value)
    for padded, image in zip(x, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    return x


def valid_maps(backbone: Backbone, x: Tensor, sizes: list[Area]) -> list[Tensor]:
    features = backbone(x, sizes)
    assert features.sizes == tuple(backbone.geometry.map_size(*size) for size in sizes)
    return [data[:, :rows, :columns] for data, (rows, columns) in zip(features.data, features.sizes, strict=True)]


def single_maps(backbone: Backbone, images: list[Tensor]) -> list[Tensor]:
    return [backbone(image[None]).data[0] for image in images]


def largest_difference(maps: list[Tensor], expected: list[Tensor]) -> float:
    assert [data.shape for data in maps] == [data.shape for data in expected]
    pairs = zip(maps, expected, strict=True)
    return max(float(((x - y).abs().max() / y.abs().max()).nan_to_num(torch.inf)) for x, y in pairs)


def create_shifted(name: str, stage: int | None = None) -> Backbone:
    """Create a backbone with random norm statistics and biases, so that zero padding does not stay zero."""
    backbone = create_backbone(name, stage, "none").eval()
    for key, tensor in backbone.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            low, high = (-0.3, 0.3) if key.endswith(("bias", "mean")) else (0.7, 1.3)
            torch.nn.init.uniform_(tensor, low, high)
    return backbone


@pytest.mark.parametrize(("name", "stage"), [*((name, None) for name in FAMILIES), *PARTS])
def test_32_sizes_match_single_images(name: str, stage: int | None) -> None:
    backbone = create_shifted(name, stage)
    sizes = draw_sizes(backbone, 32, 40)
    images = [torch.randn(3, *size) for size in sizes]
    expected = single_maps(backbone, images)
    assert largest_difference(valid_maps(backbone, pad(images, torch.nan), sizes), expected) <= 1e-5
    backbone, sizes, images = backbone.double(), sizes[:6], [image.double() for image in images[:6]]
    expected = single_maps(backbone, images)
    assert largest_difference(valid_maps(backbone, pad(images, torch.nan), sizes), expected) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_larger_networks_match_single_images(name: str) -> None:
    """In float64, because with random weights the deepest networks have float32 rounding errors of 1e-4."""
    backbone = create_shifted(name).double()
    sizes = draw_sizes(backbone, 5, 90)
    images = [torch.randn(3, *size, dtype=torch.float64) for size in sizes]
    expected = single_maps(backbone, images)
    assert largest_difference(valid_maps(backbone, pad(images, torch.nan), sizes), expected) <= 1e-10


MIXED = ["test_resnet", "test_efficientnet", "tf_mobilenetv3_small_minimal_100", "test_convnext2", "test_nfnet"]
SIZES = [(40, 77), (64, 33), (90, 90), (33, 64)]


@pytest.mark.parametrize("name", MIXED)
def test_padding_values_do_not_change_the_result(name: str) -> None:
    backbone = create_shifted(name)
    images = [torch.randn(3, *size) for size in SIZES]
    expected = valid_maps(backbone, pad(images), SIZES)
    noise = 1e4 * torch.randn_like(pad(images))
    for padded, image in zip(noise, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    for x in (noise, pad(images, torch.nan), pad(images, torch.inf), pad(images, -torch.inf)):
        before = x.clone()
        assert all(map(torch.equal, valid_maps(backbone, x, SIZES), expected))
        assert torch.equal(x.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("name", MIXED)
def test_batch_composition_and_memory_format_only_change_rounding(name: str) -> None:
    backbone = create_shifted(name).double()
    images = [torch.randn(3, *size, dtype=torch.float64) for size in SIZES]
    expected = valid_maps(backbone, pad(images), SIZES)
    order = [2, 0, 3, 1]
    shuffled = valid_maps(backbone, pad([images[index] for index in order]), [SIZES[index] for index in order])
    assert largest_difference(shuffled, [expected[index] for index in order]) <= 1e-12
    assert largest_difference(valid_maps(backbone, pad(images[:2]), SIZES[:2]), expected[:2]) <= 1e-12
    assert largest_difference(valid_maps(backbone, pad(images[:1], 3, (9, 70)), SIZES[:1]), expected[:1]) <= 1e-12
    assert largest_difference(valid_maps(backbone, pad(images, 3, (70, 1)), SIZES), expected) <= 1e-12
    x = pad(images, torch.nan).to(memory_format=torch.channels_last)
    assert largest_difference(valid_maps(backbone.to(memory_format=torch.channels_last), x, SIZES), expected) <= 1e-12


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet_gn", "convnext_atto", "tf_mobilenetv3_small_075"])
@pytest.mark.parametrize("autocast", [True, False])
def test_16_bit_precision(name: str, autocast: bool) -> None:
    """The error of a bfloat16 padded batch against float32 is at most twice that of single bfloat16 images."""
    backbone = create_shifted(name)
    images = [torch.randn(3, *size) for size in SIZES]
    exact = single_maps(backbone, images)
    x = pad(images, torch.nan)
    if not autocast:
        backbone, x, images = backbone.bfloat16(), x.bfloat16(), [image.bfloat16() for image in images]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        maps = valid_maps(backbone, x, SIZES)
        singles = single_maps(backbone, images)
    assert [data.dtype for data in maps] == [data.dtype for data in singles]
    bound = 2 * largest_difference([data.float() for data in singles], exact)
    assert largest_difference([data.float() for data in maps], exact) <= bound < 0.3


def test_inference_mode_does_not_change_the_result() -> None:
    backbone = create_shifted("test_efficientnet")
    images = [torch.randn(3, *size) for size in SIZES]
    with torch.enable_grad():
        expected = [data.detach() for data in valid_maps(backbone, pad(images), SIZES)]
    with torch.inference_mode():
        assert all(map(torch.equal, valid_maps(backbone, pad(images), SIZES), expected))


def test_equal_sizes_with_padding() -> None:
    backbone = create_shifted("test_resnet").double()
    images = [torch.randn(3, 50, 61, dtype=torch.float64) for _ in range(3)]
    maps = valid_maps(backbone, pad(images, torch.nan, (30, 3)), [(50, 61)] * 3)
    assert largest_difference(maps, list(backbone(torch.stack(images)).data)) <= 1e-12


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_consecutive_sides_in_one_batch(name: str) -> None:
    """Cover every remainder of the stride and both parities at each layer."""
    backbone = create_shifted(name, 3).double()
    sizes = [(side, 97 - side) for side in range(32, 65)]
    images = [torch.randn(3, *size, dtype=torch.float64) for size in sizes]
    expected = single_maps(backbone, images)
    assert largest_difference(valid_maps(backbone, pad(images, torch.inf), sizes), expected) <= 1e-12


UNSUPPORTED = {
    "resnest14d": r"there is no padding rule for reshape in layer1\.0\.conv2 \(SplitAttn\)",
    "edgenext_xx_small": r"rule for reshape in stages\.1\.blocks\.1\.?\S* \(SplitTransposeBlock\)",
    "skresnet18": r"rule for stack in layer1\.0\.conv1 \(SelectiveKernel\)",
    "gcresnext26ts": r"rule for reshape in .* \(GlobalContext\)",
    "mobilevit_xxs": r"expected images of one size for mobilevit_xxs, which takes multiples of 32 pixels",
    "hgnetv2_b0": r"a pad precedes a layer that does not support it in stem\.pool \(MaxPool2d\)",
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_rejects_unsupported_networks(name: str) -> None:
    backbone = create_backbone(name, weights="none").eval()
    with pytest.raises(PaddingError, match=UNSUPPORTED[name]):
        backbone(torch.zeros(2, 3, 96, 96), [(96, 96), (70, 90)])


def test_rejects_hook_that_adds_positions() -> None:
    backbone = create_backbone("test_resnet", weights="none").eval()
    layer = backbone.network.get_submodule("layer1")
    layer.register_forward_hook(lambda _layer, _x, out: out + torch.linspace(-1, 1, out.shape[3]))
    with pytest.raises(PaddingError, match=r"add has an operand of shape .* that may vary by position"):
        backbone(torch.zeros(2, 3, 64, 64), [(64, 64), (40, 50)])


def test_hooks_are_tracked() -> None:
    backbone = create_shifted("test_resnet")
    layer = backbone.network.get_submodule("layer1")
    layer.register_forward_hook(lambda _layer, _x, out: out * out.mean((2, 3), keepdim=True) + 1)
    images = [torch.randn(3, *size) for size in SIZES]
    expected = single_maps(backbone, images)
    assert largest_difference(valid_maps(backbone, pad(images), SIZES), expected) <= 1e-5


@pytest.mark.slow
def test_every_timm_family_is_exact_or_rejected() -> None:
    """Test the first network of each family by name."""
    families: dict[str, str] = {}
    for name in sorted(timm.list_models(exclude_filters="*_large*")):
        families.setdefault(timm.models._registry._model_to_module[name], name)
    inexact = []
    for name in families.values():
        try:
            with torch.device("meta"):
                create_backbone(name, weights="none")
        except (ValueError, AttributeError):
            continue  # does not support variable image sizes
        report = check_padding(name, batch=4)
        inexact += [report] if report.refused is None and not report.exact else []
    assert inexact == []
