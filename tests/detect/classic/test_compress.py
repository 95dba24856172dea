"""Tests of truncated SVD of fully connected layers, and of heads in bfloat16."""

import copy

import pytest
import torch
from PIL import Image
from torch import nn

from sppnet.backbones.backbone import create_backbone
from sppnet.detect.classic.compress import compress, truncated_svd
from sppnet.detect.model import Detector, DetectorConfig


@pytest.fixture(scope="module")
def detector() -> Detector:
    config = DetectorConfig(
        ("a", "b"), "fast", stage=3, levels=(2,), scales=(64,), rule="roi_pool", hidden=(24, 16), scorer="softmax",
        regression="fc",
    )  # fmt: skip
    return Detector(config, create_backbone(stage=3))


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 7), (7, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_full_rank_reproduces_the_layer(inputs: int, outputs: int, bias: bool) -> None:
    layer, x = nn.Linear(inputs, outputs, bias=bias), torch.randn(5, inputs)
    torch.testing.assert_close(truncated_svd(layer, 7)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_truncated_svd_has_minimal_error(unchecked: None) -> None:
    layer = nn.Linear(12, 7)
    first, second = truncated_svd(layer, 3)
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert first.weight.numel() + second.weight.numel() == 3 * (12 + 7)
    assert first.bias is None
    assert torch.equal(second.bias, layer.bias)
    torch.testing.assert_close(second.weight.T @ second.weight, torch.eye(3))
    dropped = torch.linalg.svdvals(layer.weight)[3:]
    error = (second.weight @ first.weight - layer.weight).norm()
    torch.testing.assert_close(error, dropped.norm())


@pytest.mark.parametrize("rank", [0, 8])
def test_rejects_ranks_out_of_range(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"rank: expected 1\.\.7, got {rank}; the full rank of a layer 12 -> 7 is 7"):
        truncated_svd(nn.Linear(12, 7), rank)


def test_compressed_detector_shares_the_encoder_and_keeps_the_original(detector: Detector) -> None:
    before = copy.deepcopy(detector.state_dict())
    small = compress(detector, (24, 16))
    assert small.encoder is detector.encoder
    assert small.score is not detector.score
    assert [len(layer) for layer in small.fc if isinstance(layer, nn.Sequential)] == [2, 2]
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    vectors = torch.randn(9, detector.encoder.length)
    for actual, expected in zip(small(vectors), detector(vectors), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    lossy = compress(detector, (4, 4))(vectors)[0]
    assert not torch.allclose(lossy, detector(vectors)[0], rtol=1e-2, atol=1e-2)
    assert not small.training
    assert compress(detector).state_dict()["fc.fc6.weight"].shape == (24, detector.encoder.length)


@pytest.mark.parametrize("ranks", [(), (24, 16)])
def test_bfloat16_head_gives_float32_scores_close_to_float32_head(detector: Detector, ranks: tuple[int, ...]) -> None:
    small = compress(detector, ranks, "bfloat16")
    assert {parameter.dtype for parameter in small.fc.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in small.encoder.parameters()} == {torch.float32}
    image = Image.effect_noise((90, 70), 80).convert("RGB")
    boxes = torch.tensor([[0.0, 0, 90, 70], [5, 5, 40, 60], [50, 20, 90, 70]])
    exact, approximate = detector.detect(image, boxes), small.detect(image, boxes)
    assert approximate.scores.dtype == approximate.boxes.dtype == torch.float32
    assert len(approximate.scores) == len(exact.scores)
    torch.testing.assert_close(approximate.scores.sort().values, exact.scores.sort().values, rtol=0.05, atol=0.02)


def test_rejects_wrong_ranks_and_dtypes(detector: Detector, unchecked: None) -> None:
    with pytest.raises(
        ValueError, match=r"ranks: expected one for each of the 2 fc layers \['fc6', 'fc7'\], or none, got"
    ):
        compress(detector, (4,))
    with pytest.raises(ValueError, match=r"ranks: fc7: rank: expected 1\.\.16, got 17; .* layer 24 -> 16"):
        compress(detector, (24, 17))
    with pytest.raises(ValueError, match="head_dtype: expected one of float32, bfloat16, got 'float16'"):
        compress(detector, (4, 4), "float16")  # type: ignore[arg-type]
