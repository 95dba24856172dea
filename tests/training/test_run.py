"""Run folders: saved models are restored exactly."""

from pathlib import Path

import pytest
import torch

from sppnet import Classifier, ClassifierConfig, RegionEncoder, create_backbone, load, save
from sppnet.classify.network import Head


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(
        ("Apfel", "Öl", "鳥"), "test_resnet", 2, (3, (1, 2)), "avg", "caffe", "plain", "warp:64", 12_345
    )
    model = Classifier(config, create_backbone("test_resnet", 2, None))
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))  # update the batch norm statistics
    return model


@pytest.fixture
def run(model: Classifier, tmp_path: Path) -> Path:
    save(model, tmp_path / "runs" / "first")
    return tmp_path / "runs" / "first"


def test_saved_model_is_restored_exactly(model: Classifier, run: Path) -> None:
    restored = load(str(run))
    assert restored.config == model.config
    assert not any(module.training for module in restored.modules())
    x = torch.randn(2, 3, 64, 80)
    assert torch.equal(restored(x), model.eval()(x))
    assert sorted(path.name for path in run.iterdir()) == ["model.safetensors", "run.json"]
    assert '"鳥"' in (run / "run.json").read_text(encoding="utf-8"), "names must not be escaped"


@pytest.mark.parametrize(("backbone", "head"), [("zf5", "linear"), ("test_convnext", "fc")])
def test_saves_other_backbones_and_heads(backbone: str, head: Head, tmp_path: Path) -> None:
    config = ClassifierConfig(("a", "b"), backbone, levels=(1,), head=head)
    model = Classifier(config, create_backbone(backbone, weights=None)).eval().to(memory_format=torch.channels_last)
    save(model, tmp_path)
    x = torch.randn(1, 3, 50, 60)
    torch.testing.assert_close(load(tmp_path)(x), model(x), rtol=1e-5, atol=1e-6)


def test_ignores_and_replaces_partial_files_of_a_killed_process(model: Classifier, run: Path) -> None:
    (run / ".sppnet-123.part").mkdir()
    (run / ".sppnet-123.part" / "run.json").write_bytes(b"half of ")
    assert load(run).config == model.config
    save(model, run)
    assert sorted(path.name for path in run.iterdir()) == ["model.safetensors", "run.json"]


def test_saving_again_replaces_the_model(model: Classifier, run: Path) -> None:
    other = Classifier(ClassifierConfig(("x", "y"), "test_resnet", 0, (1,)), create_backbone("test_resnet", 0, None))
    save(other, run)
    assert load(run).config == other.config


def test_rejects_models_that_cannot_be_loaded(model: Classifier, tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match="model: expected a classifier, detector, segmenter or region encoder, got Backb"
    ):
        save(model.backbone, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_refuses_a_dilated_backbone_that_would_be_loaded_without_dilation(tmp_path: Path) -> None:
    encoder = RegionEncoder(create_backbone("resnet18", -1, "none", output_stride=16))
    with pytest.raises(ValueError, match="backbone: expected output_stride 32, as features models are loaded, got 16"):
        save(encoder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
