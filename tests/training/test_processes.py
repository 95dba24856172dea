"""Training in two processes gives the same results as in one."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sppnet.classify.options import ClassifyOptions
from sppnet.classify.train import train_classifier
from tests.helpers.images import write_classes

REPOSITORY = Path(__file__).parents[2]
# Small steps, because large ones would amplify rounding differences from batch to batch.
OPTIONS = ClassifyOptions(
    sizes="native", epochs=2, batch=6, optimizer="sgd", lr=1e-3, levels=(1,), backbone="test_resnet", weights="none",
    train_stages="all", accumulate=2, ema=0.5, class_weights="balanced", label_smoothing=0.1,
)  # fmt: skip
ARGUMENTS = ["--sizes", "native", "--epochs", "2", "--batch", "6", "--optimizer", "sgd", "--lr", "1e-3"]
ARGUMENTS += ["--levels", "1", "--backbone", "test_resnet", "--weights", "none", "--train-stages", "all"]
ARGUMENTS += ["--accumulate", "2", "--ema", "0.5", "--class-weights", "balanced", "--label-smoothing", "0.1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_classes(root / "train", 5)
    (root / "train" / "red" / "broken.png").write_bytes((root / "train" / "red" / "0.png").read_bytes()[:200])
    write_classes(root / "val", 1)
    return root


@pytest.fixture(scope="module")
def single(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "single"
    assert train_classifier(data, out, OPTIONS).finished
    return out


def run(program: list[str], data: Path, out: Path, *extra: str) -> "subprocess.CompletedProcess[str]":
    command = [*program, "-m", "sppnet", "train", "classify", str(data), "--out", str(out), *ARGUMENTS, *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def compare(out: Path, single: Path) -> None:
    lines, single_lines = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (out, single)
    )
    assert [line["epoch"] for line in lines] == [1, 2]
    for line, expected in zip(lines, single_lines, strict=True):
        assert line["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert line["train_top1"] == expected["train_top1"]
        assert line["val_top1"] == expected["val_top1"]
    weights, single_weights = (load_file(folder / "model.safetensors") for folder in (out, single))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, single_weights[name], rtol=1e-3, atol=1e-3)


def test_two_processes_train_the_same_model_as_one(data: Path, single: Path, tmp_path: Path) -> None:
    done = run([sys.executable], data, tmp_path / "run", "--devices", "2")
    assert done.returncode == 0, done.stderr
    compare(tmp_path / "run", single)
    assert done.stderr.count("broken.png") == 1  # reported once, whichever process read it
    assert "is ready" in done.stdout
    assert done.stdout.count("is ready") == 1


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("forked")
    command = [sys.executable, "-m", "tests.helpers.forked_trainings", "ranks", str(root), "segment", "spp", "fast"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return root


def test_two_processes_train_the_same_segmenter_or_detector_as_one(forked: Path) -> None:
    """With an image that cannot be divided in the last batch of an epoch."""
    for name in ("segment", "spp", "fast"):
        compare_counts(forked, name)


def compare_counts(forked: Path, name: str) -> None:
    """Compare the metrics, weights and files of a training by two processes with those of one."""
    (rows, weights), (single_rows, single_weights) = (
        (
            [json.loads(line) for line in (forked / f"{name}-{count}" / "metrics.jsonl").read_text().splitlines()],
            load_file(forked / f"{name}-{count}" / "model.safetensors"),
        )
        for count in (2, 1)
    )
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, expected in zip(rows, single_rows, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert row.get("train_top1") == expected.get("train_top1")
        assert row.get("val_miou") == pytest.approx(expected.get("val_miou"), abs=0.01)
    assert weights.keys() == single_weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, single_weights[key], rtol=1e-3, atol=1e-3)
    files, single_files = (
        sorted(str(path.relative_to(forked / f"{name}-{count}")) for path in (forked / f"{name}-{count}").rglob("*"))
        for count in (2, 1)
    )
    assert files == single_files


def test_infinite_loss_in_one_process_stops_all_with_the_same_error(forked: Path) -> None:
    errors = [(forked / "diverging" / str(rank)).read_text() for rank in range(2)]
    assert errors[0] == errors[1]
    assert re.fullmatch(r"the loss is nan in epoch 1, batch 2, at a learning rate of \S+: lower it \(--lr\)", errors[0])


@pytest.mark.slow
def test_training_under_torchrun_can_be_resumed(data: Path, single: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    done = run(torchrun, data, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    compare(tmp_path / "run", single)
    again = run(torchrun, data, tmp_path / "run")
    assert again.returncode != 0
    assert "already contains a training run; use --resume" in again.stderr
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert run(torchrun, data, tmp_path / "run", "--resume").returncode == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics


_ONE_STEP = """
import sys

import torch
import torch.distributed as dist
from torch import nn

from sppnet.backbones.padded.norm import SyncBatchNormMode

rank, world, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=world)
torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, affine=False)
).double()
x, weights = torch.randn(5, 3, 9, 8).double(), torch.randn(5, 5, 5, 4).double()
part = slice(None) if world == 1 else slice(0, 2) if rank == 0 else slice(2, 5)
with SyncBatchNormMode():
    y = network(x[part])
(y * weights[part]).sum().backward()
for parameter in network.parameters():
    dist.all_reduce(parameter.grad)
state = {name: value for name, value in network.named_buffers()}
state |= {f"gradient of {name}": value.grad for name, value in network.named_parameters()}
torch.save({**state, "y": y.detach()}, f"{out}/{rank}-{world}.pt")
"""


def test_batch_norm_is_shared_between_two_processes(tmp_path: Path) -> None:
    for world in (1, 2):
        (tmp_path / "rendezvous").unlink(missing_ok=True)
        commands = [[sys.executable, "-c", _ONE_STEP, str(rank), str(world), str(tmp_path)] for rank in range(world)]
        for process in [subprocess.Popen(command) for command in commands]:
            assert process.wait(120) == 0
    whole, *parts = (torch.load(tmp_path / name, weights_only=True) for name in ("0-1.pt", "0-2.pt", "1-2.pt"))
    torch.testing.assert_close(torch.cat([part.pop("y") for part in parts]), whole.pop("y"))
    for part in parts:
        torch.testing.assert_close(part, whole, rtol=1e-10, atol=1e-10)


def test_rejects_several_processes_with_a_frozen_backbone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    frozen = ClassifyOptions(freeze_backbone=True, head="linear", epochs=1)
    with pytest.raises(
        ValueError, match="devices: expected 1 process for a frozen backbone, got 2; start it without torchrun"
    ):
        train_classifier(data, tmp_path / "run", frozen)


def test_deterministic_training_is_reproducible(data: Path, single: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, deterministic=True)
    for name in ("a", "b"):
        train_classifier(data, tmp_path / name, options)
        assert not torch.are_deterministic_algorithms_enabled()
    first, second, other = (
        (folder / "model.safetensors").read_bytes() for folder in (tmp_path / "a", tmp_path / "b", single)
    )
    assert first == second
    assert len(other) == len(first)
    train_classifier(data, tmp_path / "c", replace(options, seed=1))
    assert (tmp_path / "c" / "model.safetensors").read_bytes() != first
