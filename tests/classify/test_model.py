"""The classifier: heads, padded batches, any type and layout, copies, and wrong arguments."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sppnet import Classifier, ClassifierConfig, create_backbone
from sppnet.classify.network import Head, create_head

CLASSES = ("ash", "birch", "cedar", "date")


def build(stage: int | None = None, **options: Any) -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(CLASSES, "test_resnet", stage, **options)
    return Classifier(config, create_backbone("test_resnet", stage, None)).eval()


@pytest.fixture(scope="module")
def small() -> Classifier:
    return build()


@pytest.mark.parametrize("size", [(1, 1), (33, 160), (160, 33), (97, 98)])
def test_any_size_gives_one_logit_a_class(small: Classifier, size: tuple[int, int]) -> None:
    """Also where the map has fewer cells than the level has bins."""
    logits = small(torch.randn(2, 3, *size))
    assert logits.shape == (2, 4)
    assert logits.isfinite().all()
    assert small.vectors(torch.randn(2, 3, *size)).shape == (2, 96 * 14)


def test_logits_are_the_head_of_the_pyramid_of_the_map(small: Classifier) -> None:
    x = torch.randn(2, 3, 100, 150)
    data = small.backbone(x).data
    pyramid = torch.cat([F.adaptive_max_pool2d(data, n).flatten(1) for n in (3, 2, 1)], dim=1)
    assert torch.equal(small.vectors(x), pyramid)
    scaled = pyramid / (pyramid.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(small(x), scaled @ small.head.fc.weight.T + small.head.fc.bias)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("rule", ["adaptive", "caffe"])
@pytest.mark.parametrize("reduce", ["max", "avg"])
def test_images_of_a_padded_batch_get_the_vectors_that_they_get_alone(reduce: str, rule: str) -> None:
    model = build(2, levels=(3, (1, 2)), reduce=reduce, rule=rule)
    x = torch.randn(3, 3, 100, 141)
    sizes = [(100, 141), (37, 64), (81, 40)]
    alone = [model.vectors(x[index, None, :, :height, :width]) for index, (height, width) in enumerate(sizes)]
    expected = torch.cat(alone)
    torch.testing.assert_close(model.vectors(x, sizes), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x, torch.tensor(sizes)), model.head(expected), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model.vectors(x, sizes)[1:], model.vectors(x)[1:], atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [("plain", [nn.Linear]), ("linear", [nn.RMSNorm, nn.Linear]), ("fc", [nn.Linear] * 3)],
)
def test_heads(kind: Head, layers: list[type[nn.Module]]) -> None:
    head = create_head(kind, 12, 5)
    kinds = [type(module) for module in head.modules() if isinstance(module, nn.Linear | nn.RMSNorm)]
    assert kinds == layers
    assert head(torch.randn(3, 12)).shape == (3, 5)


def test_the_linear_head_sees_unit_mean_square_and_learns_no_scale() -> None:
    head = create_head("linear", 50, 3)
    x = torch.randn(4, 50) * torch.tensor([[0.01], [1.0], [30.0], [1e4]])
    normalised = head.norm(x)  # type: ignore[operator]
    torch.testing.assert_close(normalised[1:].square().mean(1), torch.ones(3))
    torch.testing.assert_close(head(x[1:]), head(7 * x[1:]), rtol=1e-4, atol=1e-5)
    assert [name for name, _ in head.named_parameters()] == ["fc.weight", "fc.bias"]
    assert head(torch.zeros(1, 50)).isfinite().all()


def test_gradients_reach_the_first_layer() -> None:
    model = build().train()
    model(torch.randn(2, 3, 70, 90), [(70, 90), (40, 60)]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.backbone.network.conv1[0].weight.grad.abs().sum() > 0  # type: ignore[union-attr, index]


def test_layout_of_the_images_does_not_matter(small: Classifier) -> None:
    x = torch.randn(2, 3, 64, 75)
    expected = small(x)
    strided = torch.randn(2, 6, 64, 150)
    strided[:, ::2, :, ::2] = x
    for same in (x.to(memory_format=torch.channels_last), strided[:, ::2, :, ::2], x.flip(3).flip(3)):
        torch.testing.assert_close(small(same), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_weights(small: Classifier, dtype: torch.dtype) -> None:
    model = copy.deepcopy(small).to(dtype)
    assert model.dtype == model(torch.randn(1, 3, 64, 64, dtype=dtype)).dtype == dtype
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for views in ("full", "10"):
        (found,), (expected,) = model.predict(pixels, views=views), small.predict(pixels, views=views)
        # bfloat16 has 8 bits of precision.
        assert dict(found.top) == pytest.approx(dict(expected.top), abs=1e-5 if dtype == torch.float64 else 0.05)


def test_copies_and_pickles_answer_alike(small: Classifier) -> None:
    x = torch.randn(1, 3, 50, 60)
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert twin.config == small.config
        assert twin.backbone.geometry == small.backbone.geometry
        assert torch.equal(twin(x), small(x))


def test_device_dtype_and_resize_are_those_of_the_model() -> None:
    model = build(resize="warp", max_pixels=5000)
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert (str(model.resize), model.resize.max_pixels) == ("warp:160", 5000)
    assert model.config.classes == CLASSES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "lin"}, "head: expected one of linear, fc, plain; got 'lin'"),
        ({"reduce": "mean"}, "reduce: expected one of max, avg; got 'mean'"),
        ({"rule": "adaptve"}, "rule: expected one of .*; got 'adaptve'; did you mean 'adaptive'"),
        ({"levels": ()}, "levels: expected at least one level"),
        ({"levels": (0,)}, r"levels\[0\]: expected at least 1 bin"),
        ({"resize": "wrap"}, "resize policy must be one of .*, got 'wrap'; did you mean warp"),
        ({"max_pixels": 0}, "max_pixels must be 1 or more, got 0"),
    ],
)
def test_a_wrong_configuration_is_refused_at_once(options: dict[str, Any], message: str, unchecked: None) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(("classes", "found"), [((), "0, 0"), (("ash", "birch", "ash"), "3, 2")])
def test_classes_must_differ(small: Classifier, classes: tuple[str, ...], found: str) -> None:
    message = f"classes: expected one or more different names; got {found} of them different"
    with pytest.raises(ValueError, match=message):
        Classifier(ClassifierConfig(classes, "test_resnet"), small.backbone)


def test_wrong_images_are_named(small: Classifier, unchecked: None) -> None:
    with pytest.raises(TypeError, match=r"x: expected normalised images of a floating-point type; got torch\.uint8"):
        small(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    for shape in ((3, 64, 64), (2, 1, 64, 64), (64, 64)):
        with pytest.raises(ValueError, match=r"x: expected images \(N, 3, H, W\); got shape \(" + str(shape)[1:-1]):
            small(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"sizes\[0\]: expected at most 64 x 64 pixels as in x; got \(65, 64\)"):
        small(torch.zeros(1, 3, 64, 64), [(65, 64)])


def test_a_rule_that_cannot_cut_the_map_says_so() -> None:
    model = build(levels=(6,), rule="sliding")
    with pytest.raises(
        ValueError, match=r"rule 'sliding' cannot cut a map side of 3 into level 6.*rule='adaptive' works"
    ):
        model(torch.randn(1, 3, 96, 192))
