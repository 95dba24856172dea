"""Tiny trainings of all tasks, in forked processes, which share the imports: these take longer than the trainings.

As a script, ``forked_trainings.py kill FOLDER NAME`` kills a training before every replacement and deletion of a file,
resumes it, compares it with an uninterrupted one and prints the number of kills; ``forked_trainings.py ranks FOLDER
NAME...`` runs each training in one process and in two, with the run folders NAME-1 and NAME-2, and then one in two
processes of which the second one diverges; they write their errors to the files diverging/0 and diverging/1.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning_fabric  # noqa: F401
import timm.optim
import timm.utils  # noqa: F401
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sppnet.backbones.backbone import create_backbone
from sppnet.classify.model import Classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.classify.options import ClassifyOptions
from sppnet.classify.train import train_classifier
from sppnet.detect.options import DetectOptions
from sppnet.detect.train import train_detector
from sppnet.errors import ImageError
from sppnet.segment.options import SegmentOptions
from sppnet.segment.train import train_segmenter
from sppnet.training import loop
from sppnet.training.checkpoint import finish_training, open_training
from sppnet.training.options import LoopOptions
from sppnet.training.processes import launch
from tests.helpers.detection_data import write_voc
from tests.helpers.images import write_classes
from tests.helpers.segmentation_data import write_shapes

# Small steps, because large ones would amplify rounding differences from batch to batch.
_SHORT: dict[str, Any] = {"backbone": "test_resnet", "weights": "none", "epochs": 2, "optimizer": "sgd", "lr": 1e-3}
_BOXES: dict[str, Any] = {"scales": (48,), "proposals": "grid", "windows": 20, "hidden": (8,), "batch": 8}
_CLASSES: dict[str, Any] = {"levels": (1,), "batch": 4}
_CROPS: dict[str, Any] = {"head": "pspnet", "crop": (64, 96), "batch": 4, "class_weights": "root", "dropout": 0}

# Training function, folder of the data and options of each training.
TRAININGS: dict[str, tuple[Callable[..., Any], str, Any]] = {
    "frozen": (train_classifier, "classes", ClassifyOptions(**_SHORT, **_CLASSES, freeze_backbone=True, head="linear")),
    "whole": (train_classifier, "classes", ClassifyOptions(**_SHORT, **_CLASSES, train_stages="all", sizes="native")),
    "segment": (train_segmenter, "shapes", SegmentOptions(**_SHORT, **_CROPS)),
    "spp": (train_detector, "boxes", DetectOptions(**_SHORT, **_BOXES, levels=(2, 1), steps=2)),
    "fast": (train_detector, "boxes", DetectOptions(**_SHORT, **_BOXES, method="fast")),
}


class _Batches:
    """Random vectors of two classes; the second process of several gets infinite ones in the second batch."""

    steps = 3

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor, list[ImageError]]]:
        for step in range(start, self.steps):
            generator = torch.Generator().manual_seed(10 * epoch + step)
            x = torch.randn(4, 24, generator=generator)
            yield x / 0 if self.rank == step == 1 else x, torch.arange(4) % 2, []

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        return None


def train_head(out: Path, *, resume: bool = False) -> None:
    """Train a small head with every part of the state, and with given scores."""
    torch.manual_seed(0)
    scores = [0.3, 0.7, 0.5, 0.6]
    options = ClassifyOptions(head="fc", epochs=6, ema=0.5, accumulate=2, patience=2, device="cpu", warmup_epochs=0.5)
    backbone = create_backbone("test_resnet", 0, None)
    model = Classifier(ClassifierConfig(("a", "b"), "test_resnet", 0, (1,)), backbone)
    norm = nn.BatchNorm1d(8)
    model.head = nn.Sequential(nn.Linear(24, 8), norm, nn.Dropout(), nn.Linear(8, 2))

    def validate() -> Mapping[str, float]:  # depends on the number of steps, like a real score
        assert norm.num_batches_tracked is not None
        return {"top1": scores[int(norm.num_batches_tracked) // 3 - 1]}

    if not open_training(out, out.parent, [], options, resume):
        assert loop.fit(model.head, _Batches(), options, out, validate, [])
        finish_training(model, out, "head.")


def diverge(out: Path) -> None:
    """Train in two processes, and write the error of this process."""
    options = LoopOptions(epochs=1, device="cpu")
    fabric = launch(options, out, 2)
    try:
        loop.fit(nn.Linear(24, 2), _Batches(fabric.global_rank), options, out, lambda: None, [], fabric=fabric)
    except RuntimeError as error:
        (out / str(fabric.global_rank)).write_text(str(error))


def train(name: str, data: Path, out: Path, *, resume: bool = False, devices: int = 1) -> None:
    """Run a training."""
    function, folder, options = TRAININGS[name]
    assert function(data / folder, out, replace(options, devices=devices), resume=resume).finished


def write_data(root: Path, boxes: int = 3) -> None:
    """Write the data of all trainings."""
    for split, count in (("train", 2), ("val", 1)):
        write_classes(root / "classes" / split, count)
    write_shapes(root / "shapes", "camvid", {"train": 7, "val": 2})
    write_voc(root / "boxes", boxes, 1, 80)


def fork(function: Callable[[], object], **environment: str) -> int:
    """Start a process that calls a function; return its ID."""
    process = os.fork()
    if process:
        return process
    os.environ.update(environment)
    function()
    sys.stdout.flush()
    os._exit(0)


def wait(process: int) -> int:
    """Return the exit code of a process, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def fork_ranks(function: Callable[[], object], count: int) -> list[int]:
    """Call a function in several processes of one training; return their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [fork(function, LOCAL_RANK=str(rank), **shared) for rank in range(count)]
    return [wait(process) for process in processes]


def _kill_before(place: int) -> list[Path]:
    """Kill this process before a replacement or deletion of a file; return the list of those that happen before."""
    paths: list[Path] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Path, *arguments: Any, **settings: Any) -> Any:
            if len(paths) == place:
                os.kill(os.getpid(), signal.SIGKILL)
            paths.append(self)
            return function(self, *arguments, **settings)

        return call

    for name in ("replace", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))
    return paths


def content(out: Path) -> tuple[list[str], list[dict[str, Any]], dict[tuple[str, str], bytes]]:
    """Return the names of all files and folders, the metrics without durations, and the tensors of a run folder."""
    files = {str(path.relative_to(out)): path for path in out.rglob("*")}
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    tensors = {name: load_file(path) for name, path in files.items() if path.suffix == ".safetensors"}
    return (
        sorted(files),
        [{name: value for name, value in row.items() if name != "seconds"} for row in metrics],
        {(file, name): tensor.numpy().tobytes() for file, part in tensors.items() for name, tensor in part.items()},
    )


def kill(folder: Path, name: str) -> int:
    """Kill and resume a training at each place; return the number of places."""
    write_data(folder)
    run = train_head if name == "head" else partial(train, name, folder)
    loop._SAVE_SECONDS = -1  # a checkpoint after every step

    def count() -> None:
        places = _kill_before(-1)
        run(folder / "whole")
        (folder / "count").write_text(str(len(places)))

    def die(out: Path, place: int) -> None:
        _kill_before(place)
        run(out)

    assert wait(fork(count)) == 0
    whole, places = content(folder / "whole"), int((folder / "count").read_text())
    for place in range(places):
        out = folder / f"killed-{place}"
        assert wait(fork(partial(die, out, place))) == -signal.SIGKILL
        assert wait(fork(partial(run, out, resume=True))) == 0, place
        assert content(out) == whole, place
    return places


def train_in_two_processes(folder: Path, *names: str) -> None:
    """Run each training in one process and in two, without dropout, whose masks depend on the process."""
    write_data(folder, boxes=4)
    setattr(nn.Dropout, "forward", lambda self, x: x)  # noqa: ARG005, B010
    for name in names:
        assert wait(fork(partial(train, name, folder, folder / f"{name}-1"))) == 0
        assert fork_ranks(partial(train, name, folder, folder / f"{name}-2", devices=2), 2) == [0, 0]
    (folder / "diverging").mkdir()
    assert fork_ranks(partial(diverge, folder / "diverging"), 2) == [0, 0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, root, *arguments = sys.argv[1:]
    if command == "kill":
        print(kill(Path(root), *arguments))  # noqa: T201
    else:
        train_in_two_processes(Path(root), *arguments)
