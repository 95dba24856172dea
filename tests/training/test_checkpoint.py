"""Checkpoints, and run folders of interrupted trainings."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sppnet import Classifier, ClassifierConfig, create_backbone
from sppnet.classify.options import ClassifyOptions
from sppnet.training.checkpoint import (
    Progress,
    finish_training,
    load_checkpoint,
    open_training,
    save_best,
    save_checkpoint,
)

OPTIONS = ClassifyOptions(train_stages="all", batch=4)
IMAGES = ["0.png 0", "1.png 1"]


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Linear(3, 2)
    return module, torch.optim.AdamW(module.parameters(), 0.1)


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    module(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a checkpoint of an unfinished training."""
    open_training(tmp_path / "run", tmp_path, IMAGES, OPTIONS, resume=False)
    module, optimizer = network()
    step(module, optimizer)
    save_checkpoint(tmp_path / "run", module, optimizer, Progress(epoch=1, step=1))
    return tmp_path / "run"


def test_checkpoint_restores_weights_optimizer_and_progress(tmp_path: Path) -> None:
    (module, optimizer), (resumed, resumed_optimizer) = network(), network()
    step(module, optimizer)
    progress = Progress(3, step=2, seen=7, correct=4.5, loss=1.25, seconds=9.5, best=0.5, best_epoch=2)
    average, resumed_average = nn.Linear(3, 2), nn.Linear(3, 2)
    save_checkpoint(tmp_path, module, optimizer, progress, average)
    assert load_checkpoint(tmp_path, resumed, resumed_optimizer, resumed_average) == progress
    assert torch.equal(average.weight, resumed_average.weight)
    for _ in range(2):
        step(module, optimizer)
        step(resumed, resumed_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize(("best_epoch", "kept"), [(2, True), (3, False), (0, False)])
def test_finished_run_has_the_weights_of_the_last_epoch_if_another_was_the_best(
    best_epoch: int, kept: bool, tmp_path: Path
) -> None:
    model = Classifier(ClassifierConfig(("a", "b"), "test_resnet"), create_backbone("test_resnet", weights=None))
    last, average = copy.deepcopy(model.head), copy.deepcopy(model.head)
    for number, module in enumerate((last, average)):
        nn.init.constant_(module.get_parameter("fc.weight"), number)
    optimizer = torch.optim.AdamW(last.parameters())
    save_checkpoint(tmp_path, last, optimizer, Progress(3, best=0.5, best_epoch=best_epoch), average)
    save_best(tmp_path, model.head, max(best_epoch, 1))
    finish_training(model, tmp_path, "head.")
    names = {"model.safetensors", "run.json", "last.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == (names if kept else names - {"last.safetensors"})
    if kept:
        expected = model.state_dict() | {"head.fc.weight": average.get_parameter("fc.weight")}
        torch.testing.assert_close(load_file(tmp_path / "last.safetensors"), dict(expected))


def test_training_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, *network()) == Progress()


def test_rejects_checkpoint_of_another_network(run: Path) -> None:
    module = nn.Linear(3, 4)
    with pytest.raises(ValueError, match="belongs to another network"):
        load_checkpoint(run, module, torch.optim.AdamW(module.parameters()))


def test_rejects_folder_with_a_training(run: Path) -> None:
    with pytest.raises(ValueError, match="already contains a training run; use --resume"):
        open_training(run, run.parent, IMAGES, OPTIONS, resume=False)


def test_rejects_changed_options_and_images(run: Path) -> None:
    with pytest.raises(ValueError, match=r"batch: expected 4, as when the training in .* started, got 8"):
        open_training(run, run.parent, IMAGES, replace(OPTIONS, batch=8), resume=True)
    with pytest.raises(ValueError, match=r"images: expected '2 images, .*, got '1 images, "):
        open_training(run, run.parent, IMAGES[:1], OPTIONS, resume=True)


def test_accepts_options_that_do_not_affect_the_result(run: Path) -> None:
    open_training(run, run.parent, IMAGES, replace(OPTIONS, workers=2, devices=2), resume=True)
    assert json.loads((run / "options.json").read_text())["devices"] == 2


def test_resumes_training_of_a_version_with_fewer_options(run: Path) -> None:
    stored = json.loads((run / "options.json").read_text())
    del stored["deterministic"], stored["batch_pixels"]
    (run / "options.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"deterministic: expected False, as when .* started, got True"):
        open_training(run, run.parent, IMAGES, replace(OPTIONS, deterministic=True), resume=True)
    open_training(run, run.parent, IMAGES, OPTIONS, resume=True)
    assert json.loads((run / "options.json").read_text())["deterministic"] is False


def test_damaged_options_are_reported(run: Path) -> None:
    (run / "options.json").write_text("{")
    with pytest.raises(ValueError, match=r"options\.json is damaged or was not written by this program"):
        open_training(run, run.parent, IMAGES, OPTIONS, resume=True)


def test_rejects_checkpoints_of_earlier_versions(run: Path) -> None:
    module, optimizer = network()
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    save_file(tensors, run / "checkpoint.safetensors", {"progress": '{"epoch": 1}'})
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors was written by another version of sppnet"):
        load_checkpoint(run, module, optimizer)


@pytest.mark.parametrize(("frozen", "stages"), [(False, "all"), (True, "0")])
def test_finished_runs_of_earlier_versions_have_the_stages_of_freeze_backbone(
    frozen: bool, stages: str, run: Path
) -> None:
    stored = json.loads((run / "options.json").read_text())
    stored |= {"freeze_backbone": frozen}
    del stored["train_stages"], stored["classes"]
    (run / "options.json").write_text(json.dumps(stored))
    (run / "model.safetensors").touch()
    (run / "run.json").touch()
    for value in ("0", "all"):
        if value == stages:
            assert open_training(run, run.parent, IMAGES, replace(OPTIONS, train_stages=value), resume=True)
            (run / "options.json").write_text(json.dumps(stored))
        else:
            with pytest.raises(ValueError, match=f"train_stages: expected '{stages}', as when .* got '{value}'"):
                open_training(run, run.parent, IMAGES, replace(OPTIONS, train_stages=value), resume=True)
    assert {path.name for path in run.iterdir()} == {"model.safetensors", "run.json", "options.json"}


def test_tensors_without_progress_are_not_a_checkpoint(run: Path) -> None:
    module, optimizer = network()
    save_file(
        {f"module.{name}": tensor for name, tensor in module.state_dict().items()}, run / "checkpoint.safetensors"
    )
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged or was not written by this program"):
        load_checkpoint(run, module, optimizer)


def test_removes_temporary_files_of_a_killed_training(run: Path) -> None:
    (run / ".sppnet-1.part").mkdir()
    (run / ".sppnet-1.part" / "checkpoint.safetensors").write_bytes(b"half")
    open_training(run, run.parent, IMAGES, OPTIONS, resume=True)
    assert {path.name for path in run.iterdir()} == {"options.json", "checkpoint.safetensors"}
