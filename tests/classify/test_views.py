"""Views: positions and number of their windows, and pooling of the corresponding crops of feature maps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sppnet import Classifier, ClassifierConfig, create_backbone
from sppnet.backbones.backbone import FeatureMap
from sppnet.classify.views import Views, pool_windows, view_probabilities, view_windows
from sppnet.ops.bins import window_cells
from tests.helpers.classifiers import build_classifier


@pytest.fixture(scope="module")
def small() -> Classifier:
    """Classifier with weights for 160 pixels, so all sides are 160/224 of the paper's."""
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", 2, None)
    return Classifier(ClassifierConfig(("a", "b", "c"), backbone.name, 2, levels=(2, 1)), backbone).eval()


@pytest.fixture(scope="module")
def zf5() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(("a", "b"), "zf5", levels=(1,)), create_backbone("zf5")).eval()


def noise(width: int, height: int) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_five_windows_of_a_500_x_375_image_at_shorter_side_256() -> None:
    assert view_windows(256, 341, 224, 5).tolist() == [
        [0, 0, 224, 224],
        [117, 0, 341, 224],
        [58, 16, 282, 240],
        [0, 32, 224, 256],
        [117, 32, 341, 256],
    ]


def test_nine_windows_include_the_five_and_the_edge_midpoints() -> None:
    nine = view_windows(256, 341, 224, 9).tolist()
    assert sorted({(left, top) for left, top, _, _ in nine}) == [(x, y) for x in (0, 58, 117) for y in (0, 16, 32)]
    assert all(window in nine for window in view_windows(256, 341, 224, 5).tolist())


@pytest.mark.parametrize(
    ("height", "width", "places", "count"), [(224, 299, 9, 3), (224, 299, 5, 3), (224, 224, 9, 1), (225, 224, 9, 2)]
)
def test_duplicate_windows_are_dropped(height: int, width: int, places: int, count: int) -> None:
    assert len(view_windows(height, width, 224, places)) == count


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300), st.sampled_from([5, 9]))
def test_windows_are_distinct_and_inside_the_image(side: int, extra_rows: int, extra_columns: int, places: int) -> None:
    windows = view_windows(side + extra_rows, side + extra_columns, side, places)
    assert len(windows.unique(dim=0)) == len(windows) <= places
    assert (windows[:, 2:] - windows[:, :2] == side).all()
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2] <= side + extra_columns).all()
    assert (windows[:, 3] <= side + extra_rows).all()


@pytest.mark.parametrize(
    ("views", "size", "count"),
    [
        ("10", (500, 375), 10),
        ("18", (500, 375), 18),
        ("96", (500, 375), 96),  # 6 + 18 * 5
        ("96+2", (500, 375), 98),
        ("96", (375, 500), 96),
        ("10", (90, 90), 10),
        ("96", (90, 90), 92),  # 2 + 18 * 5
        ("96+2", (90, 90), 94),
    ],
)
def test_number_of_views_includes_mirror_images(
    small: Classifier, views: Views, size: tuple[int, int], count: int
) -> None:
    counts: list[int] = []
    hook = small.head.register_forward_hook(lambda _head, inputs, _logits: counts.append(len(inputs[0])))
    with torch.inference_mode():
        probabilities = view_probabilities(small, noise(*size), views)
    hook.remove()
    assert counts == [count]
    assert probabilities.shape == (3,)
    assert float(probabilities.sum()) == pytest.approx(1)


def test_one_forward_pass_per_scale_and_mirroring(small: Classifier) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = small.backbone.register_forward_hook(lambda _module, inputs, _map: shapes.append(tuple(inputs[0].shape)))
    with torch.inference_mode():
        view_probabilities(small, noise(120, 80), "96")
    hook.remove()
    # 224, 256, 300, 360, 448 and 560 pixels, for weights of 160 pixels instead of 224.
    assert [shape[2] for shape in shapes] == [side for side in (160, 183, 214, 257, 320, 400) for _ in range(2)]
    assert all(shape[:2] == (1, 3) and abs(shape[3] - 1.5 * shape[2]) <= 0.5 for shape in shapes)


@pytest.mark.parametrize("views", ["10", "18", "96+2"])
def test_mirrored_image_gives_the_same_probabilities(small: Classifier, views: Views) -> None:
    image = noise(61, 50)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    with torch.inference_mode():
        first, second = (view_probabilities(small, view, views) for view in (image, mirrored))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_ten_views_give_the_mean_of_ten_softmaxes(small: Classifier) -> None:
    """Compute each view separately, selecting cells by their centers."""
    image = noise(183, 200)  # views are taken from the image at shorter side 183, so it is not resized
    x = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(200, 183, 3).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (small.backbone.mean, small.backbone.std))
    softmaxes = []
    with torch.inference_mode():
        for flipped in (False, True):
            normalized = ((x - mean) / std)[None]
            features = small.backbone(normalized.flip(3) if flipped else normalized).data
            for left, top in ((0, 0), (23, 0), (11, 20), (0, 40), (23, 40)):
                # With stride 8 and the first center at 0, cell i is centered on pixel 8 * i.
                rows = [i for i in range(25) if top <= 8 * i <= top + 159]
                columns = [i for i in range(23) if left <= 8 * i <= left + 159]
                crop = features[:, :, rows][:, :, :, columns]
                softmaxes.append(small.head(small.pool(crop)).softmax(1)[0])
        assert small.backbone.geometry.offset(200, 183) == (0, 0)
        probabilities = view_probabilities(small, image, "10")
    torch.testing.assert_close(probabilities, torch.stack(softmaxes).mean(0))


def test_zf5_views_are_crops_of_its_map(zf5: Classifier) -> None:
    """Windows of 224 in 256 pixels at 0, 16 and 32 cover cells 1-13, 1-14 and 2-15 of 15."""
    x = torch.randn(1, 3, 256, 256)
    cells = {0: (0, 13), 16: (0, 14), 32: (1, 15)}
    corners = [(left, top) for left in cells for top in cells]
    windows = torch.tensor([(left, top, left + 224, top + 224) for left, top in corners]).float()
    with torch.inference_mode():
        features = zf5.backbone(x)
        assert features.data.shape[2:] == (15, 15)
        pooled = pool_windows(zf5, [features], windows)
        for (left, top), vector in zip(corners, pooled, strict=True):
            rows, columns = slice(*cells[top]), slice(*cells[left])
            torch.testing.assert_close(vector, features.data[0, :, rows, columns].amax((1, 2)), rtol=0, atol=0)


def test_view_of_the_whole_image_equals_the_full_image(zf5: Classifier) -> None:
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        view = pool_windows(zf5, zf5.maps(x), torch.tensor([[0.0, 0.0, 224.0, 224.0]]))
        torch.testing.assert_close(view, zf5.vectors(x), rtol=0, atol=0)


def test_view_of_the_whole_image_has_the_vectors_of_all_stages() -> None:
    model = build_classifier(levels=(2, 1), stages=(1,))
    x = torch.randn(1, 3, 97, 131)
    with torch.inference_mode():
        view = pool_windows(model, model.maps(x), torch.tensor([[0.0, 0.0, 131.0, 97.0]]))
        torch.testing.assert_close(view, model.vectors(x))


def test_windows_are_pooled_with_the_stride_and_offset_of_each_axis(zf5: Classifier) -> None:
    features = FeatureMap(torch.arange(60.0).reshape(1, 1, 6, 10), (16, 8), (4.0, 2.5))
    window = torch.tensor([[10.0, 20.0, 50.0, 70.0]])
    assert window_cells(window, (6, 10), features.stride, features.offset).tolist() == [[1, 2, 6, 5]]

    assert pool_windows(zf5, [features], window).item() == 4 * 10 + 5


@pytest.mark.parametrize("size", [(160, 160), (161, 167), (224, 225)])
@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0"])
def test_window_of_the_whole_image_pools_the_whole_map(name: str, size: tuple[int, int]) -> None:
    """Include maps with cells centered on the first or last pixel."""
    config = ClassifierConfig(("a", "b"), name, levels=(3, 1))
    model = Classifier(config, create_backbone(name, weights=None)).eval()
    with torch.inference_mode():
        features = model.backbone(torch.randn(1, 3, *size))
        window = torch.tensor([[0.0, 0.0, size[1], size[0]]])
        torch.testing.assert_close(pool_windows(model, [features], window), model.pool(features.data))
