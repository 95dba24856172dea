"""The network of a classifier: logits at any size, padded batches, heads, and invalid configurations."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sppnet import Classifier, ClassifierConfig
from sppnet.backbones.backbone import create_backbone
from sppnet.classify.network import Head, create_head, default_stages
from tests.helpers.classifiers import build_classifier


@pytest.fixture(scope="module")
def small() -> Classifier:
    return build_classifier()


@pytest.mark.parametrize("size", [(1, 1), (33, 160), (160, 33), (97, 98)])
def test_any_size_gives_one_logit_per_class(small: Classifier, size: tuple[int, int]) -> None:
    """Include feature maps with fewer cells than bins."""
    logits = small(torch.randn(2, 3, *size))
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()
    assert small.vectors(torch.randn(2, 3, *size)).shape == (2, 96 * 14)


def test_logits_equal_the_head_applied_to_the_pyramid(small: Classifier) -> None:
    x = torch.randn(2, 3, 100, 150)
    data = small.backbone(x).data
    pyramid = torch.cat([F.adaptive_max_pool2d(data, n).flatten(1) for n in (3, 2, 1)], dim=1)
    assert torch.equal(small.vectors(x), pyramid)
    scaled = pyramid / (pyramid.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(small(x), scaled @ small.head.fc.weight.T + small.head.fc.bias)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("rule", ["adaptive", "caffe"])
@pytest.mark.parametrize("reduce", ["max", "avg"])
def test_padded_batch_matches_single_images(reduce: str, rule: str) -> None:
    model = build_classifier(stage=2, levels=(3, (1, 2)), reduce=reduce, rule=rule)
    x = torch.randn(3, 3, 100, 141)
    sizes = [(100, 141), (37, 64), (81, 40)]
    single = [model.vectors(x[index, None, :, :height, :width]) for index, (height, width) in enumerate(sizes)]
    expected = torch.cat(single)
    torch.testing.assert_close(model.vectors(x, sizes), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x, torch.tensor(sizes)), model.head(expected), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model.vectors(x, sizes)[1:], model.vectors(x)[1:], atol=1e-2)


@pytest.fixture(scope="module")
def staged() -> Classifier:
    return build_classifier(levels=(2, 1), stages=(0, -2))


def test_vectors_of_several_stages_have_equal_lengths(staged: Classifier) -> None:
    x = torch.randn(2, 3, 100, 150)
    maps = [*staged.backbone.maps(x, (0, 3)), staged.backbone(x)]
    parts = [torch.cat([F.adaptive_max_pool2d(part.data, n).flatten(1) for n in (2, 1)], 1) for part in maps]
    vectors = staged.vectors(x)
    assert vectors.shape == (2, sum(part.shape[1] for part in parts)) == (2, staged.vector_length)
    torch.testing.assert_close(vectors.square().mean(1), torch.ones(2))
    for vector, part in zip(vectors.split([part.shape[1] for part in parts], 1), parts, strict=True):
        torch.testing.assert_close(vector, part * (vector.norm(dim=1) / part.norm(dim=1))[:, None])
        torch.testing.assert_close(vector.square().sum(1), torch.full((2,), staged.vector_length / 3))


def test_padded_batch_with_several_stages_matches_single_images(staged: Classifier) -> None:
    x, sizes = torch.randn(2, 3, 100, 141), [(100, 141), (37, 64)]
    single = [staged(x[index, None, :, :height, :width]) for index, (height, width) in enumerate(sizes)]
    torch.testing.assert_close(staged(x, sizes), torch.cat(single), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stage", "stages"),
    [
        ("tf_efficientnet_lite0", None, (3, 4)),
        ("tf_efficientnet_lite0", 2, ()),
        ("test_resnet", None, (3,)),  # its last stage is the output
        ("zf5", None, ()),
    ],
)
def test_default_stages_are_the_last_maps_before_the_output(
    name: str, stage: int | None, stages: tuple[int, ...]
) -> None:
    assert default_stages(create_backbone(name, stage, None)) == stages


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((1, 1), "stages: expected different maps before the last, got"),
        ((9,), "stage: expected "),
        ((-4, 1), "different maps"),
    ],
)
def test_rejects_unknown_and_repeated_stages(stages: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_classifier(stages=stages)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [("plain", [nn.Linear]), ("linear", [nn.RMSNorm, nn.Linear]), ("fc", [nn.Linear] * 3)],
)
def test_head_has_the_layers_of_its_kind(kind: Head, layers: list[type[nn.Module]]) -> None:
    head = create_head(kind, 12, 5)
    types = [type(module) for module in head.modules() if isinstance(module, nn.Linear | nn.RMSNorm)]
    assert types == layers
    assert head(torch.randn(3, 12)).shape == (3, 5)


def test_linear_head_normalizes_its_input_without_learned_scale() -> None:
    head = create_head("linear", 50, 3)
    x = torch.randn(4, 50) * torch.tensor([[0.01], [1.0], [30.0], [1e4]])
    normalized = head.norm(x)  # type: ignore[operator]
    torch.testing.assert_close(normalized[1:].square().mean(1), torch.ones(3))
    torch.testing.assert_close(head(x[1:]), head(7 * x[1:]), rtol=1e-4, atol=1e-5)
    assert [name for name, _ in head.named_parameters()] == ["fc.weight", "fc.bias"]
    assert head(torch.zeros(1, 50)).isfinite().all()


def test_gradients_reach_the_first_layer() -> None:
    model = build_classifier().train()
    model(torch.randn(2, 3, 70, 90), [(70, 90), (40, 60)]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.backbone.network.conv1[0].weight.grad.abs().sum() > 0  # type: ignore[union-attr, index]


def test_memory_layout_does_not_change_logits(small: Classifier) -> None:
    x = torch.randn(2, 3, 64, 75)
    expected = small(x)
    strided = torch.randn(2, 6, 64, 150)
    strided[:, ::2, :, ::2] = x
    for equal in (x.to(memory_format=torch.channels_last), strided[:, ::2, :, ::2], x.flip(3).flip(3)):
        torch.testing.assert_close(small(equal), expected, rtol=1e-4, atol=1e-5)


def test_device_dtype_and_resize_properties() -> None:
    model = build_classifier(resize="warp", max_pixels=5000)
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert (str(model.resize), model.resize.max_pixels) == ("warp:160", 5000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "lin"}, "head: expected one of linear, fc, plain, got 'lin'"),
        ({"reduce": "mean"}, "reduce: expected one of max, avg, got 'mean'"),
        ({"rule": "adaptve"}, "rule: expected one of .*, got 'adaptve'; did you mean 'adaptive'"),
        ({"levels": ()}, "levels: expected at least one level"),
        ({"levels": (0,)}, r"levels\[0\]: expected at least 1 bin"),
        ({"resize": "wrap"}, "resize: expected one of .*, got 'wrap'; did you mean warp"),
        ({"max_pixels": 0}, "max_pixels: expected at least 1, got 0"),
    ],
)
def test_rejects_invalid_configurations(options: dict[str, Any], message: str, unchecked: None) -> None:
    with pytest.raises(ValueError, match=message):
        build_classifier(**options)


@pytest.mark.parametrize(("classes", "counts"), [((), "0 names, 0"), (("ash", "birch", "ash"), "3 names, 2")])
def test_rejects_missing_and_duplicate_classes(small: Classifier, classes: tuple[str, ...], counts: str) -> None:
    message = f"classes: expected one or more distinct names, got {counts} of them distinct"
    with pytest.raises(ValueError, match=message):
        Classifier(ClassifierConfig(classes, "test_resnet"), small.backbone)


def test_rejects_images_of_wrong_dtype_shape_and_size(small: Classifier, unchecked: None) -> None:
    with pytest.raises(TypeError, match=r"x: expected normalized images of a floating-point dtype, got torch\.uint8"):
        small(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    for shape in ((3, 64, 64), (2, 1, 64, 64), (64, 64)):
        with pytest.raises(ValueError, match=r"x: expected images \(N, 3, H, W\), got shape \(" + str(shape)[1:-1]):
            small(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"sizes\[0\]: expected at most 64 x 64 pixels .* as in x, got 65 x 64"):
        small(torch.zeros(1, 3, 64, 64), [(65, 64)])


def test_rejects_map_that_the_rule_cannot_cut() -> None:
    model = build_classifier(levels=(6,), rule="sliding")
    with pytest.raises(ValueError, match=r"cuts a map side of 3 into 6 bins, got 'sliding'.*rule='adaptive' works"):
        model(torch.randn(1, 3, 96, 192))
