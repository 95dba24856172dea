"""Classifier runtimes of the server: equal results in PyTorch, torch.compile and ONNX Runtime."""

import io
from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from sppnet.backbones.backbone import create_backbone
from sppnet.classify.model import Classifier
from sppnet.inference.memory import settled_bytes
from sppnet.serving import runtimes
from sppnet.serving.runtimes import onnx_probabilities, takes_padding, torch_probabilities
from tests.helpers.web_clients import photograph

pytest_plugins = ("tests.helpers.web_clients",)


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for row, expected_row in zip(actual, expected, strict=True):
        torch.testing.assert_close(row, expected_row, rtol=1e-4, atol=1e-6)


def test_padded_batch_matches_single_images(classifier: Classifier) -> None:
    assert takes_padding(classifier.backbone)
    images = [Image.open(io.BytesIO(photograph(*size))) for size in ((97, 131), (120, 100), (64, 131))]
    single = [torch_probabilities(classifier)([image])[0] for image in images]
    assert_close(torch_probabilities(classifier, padded=True)(images), single)


def test_onnx_matches_torch(classifier: Classifier) -> None:
    run = onnx_probabilities(classifier, threads=1)
    for size in ((97, 131), (64, 40)):
        images = [Image.open(io.BytesIO(photograph(*size, seed))) for seed in range(2)]
        assert_close(run(images), torch_probabilities(classifier)(images))


@pytest.mark.slow
def test_onnx_releases_the_memory_of_large_images(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    run = onnx_probabilities(classifier, threads=1)
    run([Image.new("RGB", (64, 64))])
    before = settled_bytes()
    run([Image.new("RGB", (2000, 2000))])
    assert settled_bytes() > before + 300_000_000
    monkeypatch.setattr(runtimes, "_SHRINK_SECONDS", 0.0)
    run([Image.new("RGB", (64, 64))])
    assert settled_bytes() < before + 100_000_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about the machine
def test_compiled_matches_eager(classifier: Classifier) -> None:
    torch.manual_seed(0)
    compiled = Classifier(classifier.config, create_backbone("zf5")).eval()
    compiled.load_state_dict(classifier.state_dict())
    compiled.backbone.compile_network()
    for size in ((97, 131), (64, 40), (200, 133)):
        image = Image.open(io.BytesIO(photograph(*size)))
        for count in (1, 2):
            expected = torch_probabilities(classifier)([image]) * count
            assert_close(torch_probabilities(compiled)([image] * count), expected)
