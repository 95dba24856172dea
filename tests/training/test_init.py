"""Weights of another run to start from."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from sppnet import Classifier, ClassifierConfig, DetectorConfig, create_backbone, save
from sppnet.detect.model import create_detector
from sppnet.training.init import initialize

FINAL = ("head.",)


def classifier(*classes: str, stage: int | None = None, levels: tuple[int, ...] = (1,)) -> Classifier:
    config = ClassifierConfig(classes, "test_resnet", stage, levels)
    return Classifier(config, create_backbone("test_resnet", stage, None))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(classifier("a", "b"), tmp_path / "run")
    return tmp_path / "run"


def changed(model: nn.Module, run: Path, final: tuple[str, ...]) -> tuple[bool, set[str]]:
    """Initialize the model; return whether the task is the same, and the names of the tensors that have changed."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    same_task = initialize(model, run, final)
    parameters = dict(model.named_parameters())
    return same_task, {name for name in parameters if not torch.equal(before[name], parameters[name])}


def test_all_weights_of_the_same_classes_are_loaded(run: Path) -> None:
    model, other = classifier("a", "b"), classifier("a", "b")
    assert initialize(model, run, FINAL)
    assert initialize(other, run, FINAL)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), other.eval()(x))


@pytest.mark.parametrize("classes", [("b", "a"), ("a", "b", "c")])
def test_final_layers_of_other_classes_are_not_loaded(classes: tuple[str, ...], run: Path) -> None:
    same_task, names = changed(classifier(*classes), run, FINAL)
    assert same_task
    assert "backbone.network.conv1.weight" in names or any("conv" in name for name in names)
    assert not any(name.startswith("head.") for name in names)


def test_other_architectures_are_rejected_with_the_first_tensor_that_differs(run: Path) -> None:
    before = classifier("a", "b", levels=(2,))
    state = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"init: expected shape \(2, \d+\) for head.fc.weight, got shape \(2, \d+\) in"
    ):
        initialize(before, run, FINAL)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.state_dict().items())
    other = Classifier(ClassifierConfig(("a", "b"), "zf5"), create_backbone("zf5"))
    with pytest.raises(ValueError, match=r"init: expected shape \(96, 3, 7, 7\) for backbone\.\S+, got no tensor in"):
        initialize(other, run, FINAL)


def test_only_the_backbone_is_loaded_from_a_run_of_another_task(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sppnet")
    detector = create_detector(DetectorConfig(("a",), backbone="test_resnet", stage=2), "none")
    same_task, names = changed(detector, run, ("score.", "offsets."))
    assert not same_task
    assert names
    assert all(name.startswith("encoder.backbone.") for name in names)
    count = len(detector.encoder.backbone.state_dict())
    assert f"run of the task classify: {count} of {count} tensors" in caplog.text
    save(detector, tmp_path / "detector")
    whole = classifier("a", "b")
    same_task, names = changed(whole, tmp_path / "detector", FINAL)
    assert not same_task
    assert f"{count} of {len(whole.backbone.state_dict())} tensors" in caplog.text
    state = detector.encoder.backbone.state_dict()
    assert all(torch.equal(whole.backbone.state_dict()[name], tensor) for name, tensor in state.items())
    other = Classifier(ClassifierConfig(("a", "b"), "zf5"), create_backbone("zf5"))
    with pytest.raises(ValueError, match=r"for backbone\.\S+, got no tensor in"):
        initialize(other, tmp_path / "detector", FINAL)


def test_unfinished_runs_are_rejected(run: Path, tmp_path: Path) -> None:
    (run / "model.safetensors").unlink()
    for folder in (run, tmp_path / "none"):
        with pytest.raises(
            ValueError, match=r"init: expected a finished run, with run\.json and model\.safetensors, got"
        ):
            initialize(classifier("a", "b"), folder, FINAL)
