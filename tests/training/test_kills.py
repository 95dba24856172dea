"""Trainings killed at any replacement or deletion of a file, and resumed, equal an uninterrupted one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Trains a small classifier with every part of the state. "count" prints the number of places where it can be killed;
# otherwise, for each place, a forked process is killed there, another one resumes, and the run folders are compared.
_SCRIPT = """
import json, os, signal, sys
from pathlib import Path

import lightning_fabric, timm  # once, before the forks
import torch
from safetensors.torch import load_file
from torch import nn

from sppnet import Classifier, ClassifierConfig, create_backbone
from sppnet.classify.options import ClassifyOptions
from sppnet.training import loop
from sppnet.training.checkpoint import finish_training, open_training

torch.set_num_threads(1)
folder = Path(sys.argv[1])
loop._SAVE_SECONDS = -1  # a checkpoint after every step
backbone = create_backbone("test_resnet", 0, None)
SCORES = [0.3, 0.7, 0.5, 0.6]
OPTIONS = ClassifyOptions(head="fc", epochs=6, ema=0.5, accumulate=2, patience=2, device="cpu", warmup_epochs=0.5)


class Batches:
    steps = 3

    def epoch(self, epoch, start):
        for step in range(start, self.steps):
            generator = torch.Generator().manual_seed(10 * epoch + step)
            yield torch.randn(4, 24, generator=generator), torch.arange(4) % 2, []

    def side(self, epoch):
        return None


def train(out, resume=False):
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(("a", "b"), "test_resnet", 0, (1,)), backbone)
    model.head = nn.Sequential(nn.Linear(24, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    done = open_training(out, folder, [], OPTIONS, resume)
    def validate():  # depends on the number of steps, like a real score
        return {"top1": SCORES[int(model.head[1].num_batches_tracked) // 3 - 1]}
    if not done:
        assert loop.fit(model.head, Batches(), OPTIONS, out, validate, [])
        finish_training(model, out, "head.")


def kill_at(place):
    calls = 0
    def counted(function):
        def call(self, *arguments, **settings):
            nonlocal calls
            for _ in range(2):  # before and after
                if calls == place:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
                if _ == 0:
                    result = function(self, *arguments, **settings)
            return result
        return call
    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
    return lambda: calls


def forked(function):
    process = os.fork()
    if process == 0:
        function()
        os._exit(0)
    return os.waitpid(process, 0)[1]


def content(out):
    files = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        del line["seconds"]
    tensors = {name: load_file(path) for name, path in files.items() if path.suffix == ".safetensors"}
    return sorted(files), metrics, {
        (name, key): tensor.numpy().tobytes() for name, part in tensors.items() for key, tensor in part.items()
    }


def train_and_count():
    calls = kill_at(-1)
    train(folder / "whole")
    (folder / "count").write_text(str(calls()))


def train_and_die(out, place):
    kill_at(place)
    train(out)


assert forked(train_and_count) == 0
whole, places = content(folder / "whole"), int((folder / "count").read_text())
names = ["last.safetensors", "metrics.csv", "metrics.jsonl", "model.safetensors", "options.json", "run.json"]
assert whole[0] == names, whole[0]
assert len(whole[1]) == 4  # stopped early; the second epoch is the best
for place in range(places):
    out = folder / f"killed-{place}"
    assert forked(lambda: train_and_die(out, place)) == signal.SIGKILL
    assert forked(lambda: train(out, True)) == 0, place
    assert content(out) == whole, place
print(places)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_training_killed_at_any_file_operation_can_be_resumed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40
