"""Images of different sizes in one padded batch get the maps that they get alone, whatever the padding holds."""

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


def draw_sizes(backbone: Backbone, count: int, room: int) -> list[Area]:
    rng = random.Random(count)
    rows, columns = (max(*pair) for pair in zip(backbone.geometry.smallest(), backbone.geometry.stride, strict=True))
    sizes: set[Area] = set()
    while len(sizes) < count:
        sizes.add((rng.randint(rows, rows + room), rng.randint(columns, columns + room)))
    return sorted(sizes, key=lambda _: rng.random())


def pad(images: list[Tensor], value: float = 0.0, spare: Area = (0, 0)) -> Tensor:
    rows, columns = (max(one.shape[axis] for one in images) + more for axis, more in zip((1, 2), spare, strict=True))
    x = images[0].new_full((len(images), 3, rows, columns), value)
    for place, image in zip(x, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return x


def valid_maps(backbone: Backbone, x: Tensor, sizes: list[Area]) -> list[Tensor]:
    features = backbone(x, sizes)
    assert features.sizes == tuple(backbone.geometry.map_size(*size) for size in sizes)
    return [one[:, :h, :w] for one, (h, w) in zip(features.data, features.sizes, strict=True)]


def largest_difference(maps: list[Tensor], others: list[Tensor]) -> float:
    assert [one.shape for one in maps] == [other.shape for other in others]
    pairs = zip(maps, others, strict=True)
    return max(float(((one - other).abs().max() / other.abs().max()).nan_to_num(torch.inf)) for one, other in pairs)


def small(name: str, stage: int | None = None) -> Backbone:
    """With norms that shift, so that a padding of zeros does not stay one."""
    backbone = create_backbone(name, stage, "none").eval()
    for key, tensor in backbone.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            low, high = (-0.3, 0.3) if key.endswith(("bias", "mean")) else (0.7, 1.3)
            torch.nn.init.uniform_(tensor, low, high)
    return backbone


@pytest.mark.parametrize(("name", "stage"), [*((name, None) for name in FAMILIES), *PARTS])
def test_thirty_two_sizes_in_one_batch_are_those_one_by_one(name: str, stage: int | None) -> None:
    backbone = small(name, stage)
    sizes = draw_sizes(backbone, 32, 40)
    images = [torch.randn(3, *size) for size in sizes]
    alone = [backbone(image[None]).data[0] for image in images]
    assert largest_difference(valid_maps(backbone, pad(images, torch.nan), sizes), alone) <= 1e-5
    backbone, sizes, images = backbone.double(), sizes[:6], [image.double() for image in images[:6]]
    alone = [backbone(image[None]).data[0] for image in images]
    assert largest_difference(valid_maps(backbone, pad(images, torch.nan), sizes), alone) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_larger_networks(name: str) -> None:
    """In float64: in float32 random weights make 1e-4 of rounding alone in the deepest of them."""
    backbone = small(name).double()
    sizes = draw_sizes(backbone, 5, 90)
    images = [torch.randn(3, *size, dtype=torch.float64) for size in sizes]
    alone = [backbone(image[None]).data[0] for image in images]
    assert largest_difference(valid_maps(backbone, pad(images, torch.nan), sizes), alone) <= 1e-10


MIXED = ["test_resnet", "test_efficientnet", "tf_mobilenetv3_small_minimal_100", "test_convnext2", "test_nfnet"]
SIZES = [(40, 77), (64, 33), (90, 90), (33, 64)]


@pytest.mark.parametrize("name", MIXED)
def test_what_the_padding_holds_changes_no_bit(name: str) -> None:
    backbone = small(name)
    images = [torch.randn(3, *size) for size in SIZES]
    expected = valid_maps(backbone, pad(images), SIZES)
    noise = 1e4 * torch.randn_like(pad(images))
    for place, image in zip(noise, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    for x in (noise, pad(images, torch.nan), pad(images, torch.inf), pad(images, -torch.inf)):
        before = x.clone()
        assert all(map(torch.equal, valid_maps(backbone, x, SIZES), expected))
        assert torch.equal(x.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("name", MIXED)
def test_order_company_canvas_and_memory_format_change_rounding_only(name: str) -> None:
    backbone = small(name).double()
    images = [torch.randn(3, *size, dtype=torch.float64) for size in SIZES]
    expected = valid_maps(backbone, pad(images), SIZES)
    order = [2, 0, 3, 1]
    shuffled = valid_maps(backbone, pad([images[index] for index in order]), [SIZES[index] for index in order])
    assert largest_difference(shuffled, [expected[index] for index in order]) <= 1e-12
    assert largest_difference(valid_maps(backbone, pad(images[:2]), SIZES[:2]), expected[:2]) <= 1e-12
    assert largest_difference(valid_maps(backbone, pad(images[:1], 3, (9, 70)), SIZES[:1]), expected[:1]) <= 1e-12
    assert largest_difference(valid_maps(backbone, pad(images, 3, (70, 1)), SIZES), expected) <= 1e-12
    last = pad(images, torch.nan).to(memory_format=torch.channels_last)
    assert (
        largest_difference(valid_maps(backbone.to(memory_format=torch.channels_last), last, SIZES), expected) <= 1e-12
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet_gn", "convnext_atto", "tf_mobilenetv3_small_075"])
@pytest.mark.parametrize("autocast", [True, False])
def test_sixteen_bits(name: str, autocast: bool) -> None:
    """The padded batch is no further from float32 than the images alone in bfloat16."""
    backbone = small(name)
    images = [torch.randn(3, *size) for size in SIZES]
    exact = [backbone(image[None]).data[0] for image in images]
    x = pad(images, torch.nan)
    if not autocast:
        backbone, x, images = backbone.bfloat16(), x.bfloat16(), [image.bfloat16() for image in images]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        maps = valid_maps(backbone, x, SIZES)
        alone = [backbone(image[None]).data[0] for image in images]
    assert [one.dtype for one in maps] == [one.dtype for one in alone]
    bound = 2 * largest_difference([one.float() for one in alone], exact)
    assert largest_difference([one.float() for one in maps], exact) <= bound < 0.3


def test_inference_mode_and_gradients_give_the_same_maps() -> None:
    backbone = small("test_efficientnet")
    images = [torch.randn(3, *size) for size in SIZES]
    with torch.enable_grad():
        expected = [one.detach() for one in valid_maps(backbone, pad(images), SIZES)]
    with torch.inference_mode():
        assert all(map(torch.equal, valid_maps(backbone, pad(images), SIZES), expected))


def test_images_of_one_size_on_a_larger_canvas() -> None:
    backbone = small("test_resnet").double()
    images = [torch.randn(3, 50, 61, dtype=torch.float64) for _ in range(3)]
    maps = valid_maps(backbone, pad(images, torch.nan, (30, 3)), [(50, 61)] * 3)
    assert largest_difference(maps, list(backbone(torch.stack(images)).data)) <= 1e-12


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_every_side_of_a_range_shares_one_batch(name: str) -> None:
    """So that each remainder of the stride is met, and both parities at each layer."""
    backbone = small(name, 3).double()
    sizes = [(side, 97 - side) for side in range(32, 65)]
    images = [torch.randn(3, *size, dtype=torch.float64) for size in sizes]
    alone = [backbone(image[None]).data[0] for image in images]
    assert largest_difference(valid_maps(backbone, pad(images, torch.inf), sizes), alone) <= 1e-12


REFUSED = {
    "resnest14d": r"reshape may look at other cells, and no rule is known for it in layer1\.0\.conv2 \(SplitAttn\)",
    "edgenext_xx_small": r"reshape may look .* in stages\.1\.blocks\.1\.?\S* \(SplitTransposeBlock\)",
    "skresnet18": r"stack may look at other cells, .* in layer1\.0\.conv1 \(SelectiveKernel\)",
    "gcresnext26ts": r"reshape may look .* \(GlobalContext\)",
    "mobilevit_xxs": r"reshape may look .* \(MobileVitBlock\)",
    "hgnetv2_b0": r"a padding goes before a layer that it does not suit in stem\.pool \(MaxPool2d\)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_cannot_be_exact_name_their_layer(name: str) -> None:
    backbone = create_backbone(name, weights="none").eval()
    with pytest.raises(PaddingError, match=REFUSED[name]):
        backbone(torch.zeros(2, 3, 96, 96), [(96, 96), (70, 90)])


def test_a_network_that_adds_positions_is_refused() -> None:
    backbone = create_backbone("test_resnet", weights="none").eval()
    layer = backbone.network.get_submodule("layer1")
    layer.register_forward_hook(lambda _layer, _x, out: out + torch.linspace(-1, 1, out.shape[3]))
    with pytest.raises(PaddingError, match=r"add takes a map of .* that does not follow from the images"):
        backbone(torch.zeros(2, 3, 64, 64), [(64, 64), (40, 50)])


def test_a_hook_is_part_of_the_network() -> None:
    backbone = small("test_resnet")
    layer = backbone.network.get_submodule("layer1")
    layer.register_forward_hook(lambda _layer, _x, out: out * out.mean((2, 3), keepdim=True) + 1)
    images = [torch.randn(3, *size) for size in SIZES]
    alone = [backbone(image[None]).data[0] for image in images]
    assert largest_difference(valid_maps(backbone, pad(images), SIZES), alone) <= 1e-5


@pytest.mark.slow
def test_every_family_of_timm_is_exact_or_refused() -> None:
    """One member each, the first by name; none may differ in silence."""
    first: dict[str, str] = {}
    for name in sorted(timm.list_models(exclude_filters="*_large*")):
        first.setdefault(timm.models._registry._model_to_module[name], name)
    wrong = []
    for name in first.values():
        try:
            with torch.device("meta"):
                create_backbone(name, weights="none")
        except (ValueError, AttributeError):
            continue  # no maps of every size
        report = check_padding(name, images=4)
        wrong += [report] if report.refused is None and not report.exact else []
    assert wrong == []
