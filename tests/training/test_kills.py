"""Trainings that are killed at any moment and resumed give the same result as uninterrupted ones."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.forked_trainings import content, write_data

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
COMMON = ("--backbone", "test_resnet", "--weights", "none")
BOXES = ("boxes", "--scales", "48", "--proposals", "grid", "--windows", "20", "--hidden", "8", "--batch", "8")
CLASSES = ("classes", "--levels", "1", "--batch", "4")
COMMANDS = {
    "frozen": ("classify", *CLASSES, "--freeze-backbone", "--head", "linear", "--epochs", "60"),
    "whole": ("classify", *CLASSES, "--train-stages", "all", "--sizes", "native", "--epochs", "15", "--ema", "0.9"),
    "segment": ("segment", "shapes", "--head", "pspnet", "--crop", "32,48", "--batch", "4", "--epochs", "12"),
    "spp": ("detect", *BOXES, "--method", "spp", "--levels", "2,1", "--steps", "2", "--epochs", "40"),
    "fast": ("detect", *BOXES, "--method", "fast", "--epochs", "25"),
}


@pytest.mark.parametrize("name", ["head", *(pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS)])
def test_training_killed_before_any_file_operation_can_be_resumed(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.helpers.forked_trainings", "kill", str(tmp_path), name]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 10


def start(name: str, data: Path, out: Path, *extra: str) -> "subprocess.Popen[str]":
    """Start a training, and return when it begins to write to its run folder."""
    task, folder, *options = COMMANDS[name]
    command = [sys.executable, "-m", "sppnet", "train", task, str(data / folder), "--out", str(out), *COMMON, *options]
    before = written(out)
    process = subprocess.Popen([*command, *extra], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while written(out) == before and process.poll() is None:
        time.sleep(0.01)
    return process


def written(out: Path) -> int:
    """Return when the options of a training were written; 0 before."""
    path = out / "options.json"
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_training_killed_at_random_moments_can_be_resumed(name: str, tmp_path: Path) -> None:
    write_data(tmp_path)
    whole, out, rng = tmp_path / "whole", tmp_path / "killed", random.Random(name)
    with start(name, tmp_path, whole) as process:
        began = time.monotonic()
        _, errors = process.communicate(timeout=300)
        seconds = time.monotonic() - began
    assert process.returncode == 0, errors
    codes = []
    for _ in range(3):
        with start(name, tmp_path, out, "--resume") as process:
            time.sleep(rng.uniform(0, seconds / 5))
            process.kill()
        codes.append(process.returncode)
    assert -signal.SIGKILL in codes
    assert set(codes) <= {-signal.SIGKILL, 0}, "on a busy machine, the last ones may have finished"
    with start(name, tmp_path, out, "--resume") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert content(out) == content(whole)  # no temporary files either
