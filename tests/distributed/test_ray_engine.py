"""Ray and URLs give the same predictions and features as one local process; dead processes and wrong options."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.cli.main import run
from sppnet.data.listing import list_images
from sppnet.distributed.ray_engine import cluster, import_ray
from sppnet.features.shards import read_metadata
from sppnet.features.vectors import read_features
from sppnet.io.part_files import read_predictions

COUNT = 40  # images, all of different size, so that batching does not change the rounding


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 255, (150 + number, 300 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if number % 2 else "") / f"{number:03d}.png")
    (folder / "zero.png").write_bytes(b"")
    (folder / "more" / "text.jpg").write_text("no picture")
    return folder


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "sppnet", *map(str, arguments)]


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in Ray's processes with one CPU
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, env=environment)


def busy_workers(process: int) -> dict[int, int]:
    """Return the CPU time in ticks, by process id, of the descendants that Ray's process titles show as busy."""
    parents, titles, ticks = {}, {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)], ticks[int(folder.name)] = int(stat[1]), int(stat[11])
                titles[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:
                continue
    busy = {}
    for worker, title in titles.items():
        ancestor = worker
        while ancestor in parents and ancestor != process:
            ancestor = parents[ancestor]
        if ancestor == process and title.startswith("ray::MapWorker") and ".submit" in title:
            busy[worker] = ticks[worker]
    return busy


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_killed_worker_loses_and_duplicates_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two processes is killed during a task; the output equals that of the local engine."""
    assert run(["predict", "imagenet", str(images), "--json", "--device", "cpu"]) == 1
    expected = capsys.readouterr().out
    options = ("--engine", "ray", "--actors", "2", "--shard", "4", "--device", "cpu")
    arguments = ["predict", "imagenet", str(images), *options, "--out", str(tmp_path)]
    started = subprocess.Popen(command(*arguments, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        parts, before, victims = 0, dict[int, int](), list[int]()
        while not (victims and parts) and time.monotonic() < deadline:
            time.sleep(0.005)
            busy, parts_before, parts = busy_workers(started.pid), parts, len(list(tmp_path.glob("part-*.jsonl")))
            if parts > parts_before:
                before = busy
            # A worker that used CPU time since the last file was written is within a task, not between two.
            victims = [worker for worker in busy if busy[worker] >= before.get(worker, busy[worker]) + 2]
        os.kill(victims[0], signal.SIGKILL)
        output, messages = started.communicate(timeout=240)
    finally:
        started.kill()
    assert started.returncode == 1, messages
    assert output == expected
    assert "worker processes died 1 times; their images were processed again" in messages
    assert "2 images could not be used" in messages
    assert "text.jpg: not an image" in messages
    assert "core_worker" not in messages
    assert "Traceback" not in messages
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "index.json",
        *(f"part-{number:05d}.jsonl" for number in range(11)),
    ]
    sources = [answer["source"] for answer in read_predictions(tmp_path)]
    assert sources == [str(path) for path in list_images(images)]
    # A second run has nothing to do and does not connect to Ray.
    times = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("part-*")}
    assert run([*arguments, "--ray-address", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().out == f"{COUNT} results in 11 files: {tmp_path}\n"
    assert times == {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("part-*")}
    assert run([*arguments, "--resize", "shorter-side:64"]) == 2
    message = "contains results of other settings: resize None, not shorter-side:64; choose another folder"
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_detector_on_ray_matches_the_local_engine(detector_run: Path, images: Path, tmp_path: Path) -> None:
    options = ("--min-score", "0.3", "--json", "--device", "cpu", "--head-dtype", "bfloat16")
    local = call("predict", detector_run, images / "more", *options)
    ray = call(
        "predict", detector_run, f"file://{images}/more", *options, "--engine", "ray", "--out", tmp_path, "--shard", "7"
    )
    assert ray.returncode == local.returncode == 1
    assert ray.stdout.replace("file://", "") == local.stdout
    assert any(json.loads(line)["objects"] for line in local.stdout.splitlines())


@pytest.mark.slow
def test_only_missing_parts_are_computed(images: Path, tmp_path: Path) -> None:
    arguments = ("predict", "imagenet", images, "--engine", "ray", "--actors", "2", "--shard", "16", "--out", tmp_path)
    first = call(*arguments, "--json")
    (tmp_path / "part-00001.jsonl").unlink()
    times = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("part-*")}
    assert call(*arguments, "--json").stdout == first.stdout
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("part-*")}
    assert {name for name, modified in after.items() if times.get(name) != modified} == {"part-00001.jsonl"}


def write_boxes(images: Path, file: Path) -> Path:
    names = [path.relative_to(images).as_posix() for path in list_images(images) if path.stat().st_size > 20]
    rows = [f"{name},{step},2,{60 + step},90,{name}-{step}" for name in names for step in (0, 10)]
    file.write_text("\n".join(["image,x1,y1,x2,y2,id", *rows]) + "\n")
    return file


def assert_same_vectors(folder: str | Path, expected: Path) -> None:
    pairs = list(zip(read_features(folder), read_features(expected), strict=True))
    assert len(pairs) == COUNT
    for a, b in pairs:
        assert (a.image, a.ids) == (b.image, b.ids)
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.vectors, b.vectors)


@pytest.mark.slow
def test_features_on_ray_match_the_local_engine(images: Path, tmp_path: Path) -> None:
    boxes = write_boxes(images, tmp_path / "boxes.csv")
    options = ("--backbone", "zf5", "--weights", "none", "--levels", "2,1", "--scales", "96", "--device", "cpu")
    local = call("features", images, "--boxes", boxes, "--out", tmp_path / "local", *options)
    assert local.returncode == 0, local.stderr
    url = f"file://{tmp_path}/ray"
    ray = call("features", f"file://{images}", "--boxes", boxes, "--out", url, *options, "--engine", "ray")
    assert ray.returncode == 0, ray.stderr
    assert_same_vectors(url, tmp_path / "local")


def test_features_of_a_url_match_the_folder(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = write_boxes(images, tmp_path / "boxes.csv")
    options = ["--backbone", "zf5", "--weights", "none", "--levels", "1", "--scales", "64"]
    assert run(["features", str(images), "--boxes", str(boxes), "--out", str(tmp_path / "local"), *options]) == 0
    arguments: list[str] = []
    for storage in ("safetensors", "parquet"):
        out = f"file://{tmp_path}/{storage}/"
        arguments = ["features", f"file://{images}", "--boxes", f"file://{boxes}", "--out", out, "--storage", storage]
        assert run([*arguments, *options]) == 0
        assert_same_vectors(out, tmp_path / "local")
        file = tmp_path / storage / f"00000.{storage}"
        before = file.stat().st_mtime_ns
        assert run([*arguments, *options]) == 0
        assert file.stat().st_mtime_ns == before
    assert run([*arguments, *options, "--draw", "1"]) == 2
    assert "out: expected a local folder when draw is above 0" in capsys.readouterr().err
    metadata = read_metadata(f"file://{tmp_path}/safetensors/00000.safetensors")
    assert metadata is not None
    assert metadata == read_metadata(tmp_path / "safetensors" / "00000.safetensors")
    assert read_metadata(f"file://{tmp_path}/none.safetensors") is None


def test_missing_image_of_a_url_suggests_close_names(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x1,y1,x2,y2\n000.pgn,0,0,9,9\n")
    assert run(["features", f"file://{images}", "--boxes", str(boxes), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"are missing from file://{images}: 000.pgn (line 2)" in message
    assert "000.png" in message


def test_missing_ray_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "info")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"runs on Ray need the package ray, .* the extra 'ray'"):
        import_ray()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_unreachable_cluster_fails_fast() -> None:
    with pytest.raises(ConnectionError, match=r"no response from 127\.0\.0\.1:1"), cluster("127.0.0.1:1", None):
        pass


KILLER = """
import os
from dataclasses import dataclass
from sppnet.distributed.ray_engine import WorkerError, cluster, run_tasks

@dataclass
class Killer:
    def start(self, device):
        pass

    def run(self, task):
        if task == "crash":
            os.kill(os.getpid(), 9)
        if task == "fail":
            raise PermissionError("access denied")
        return task.upper()

with cluster(None, 2):
    for tasks in (["a", "crash", "b"], ["a", "fail"]):
        try:
            for done in run_tasks(Killer(), tasks, 2, "cpu"):
                pass
        except WorkerError as error:
            message = str(error)
        os.write(1, (message + chr(10)).encode())
"""


@pytest.mark.slow
def test_task_that_keeps_killing_its_process_or_raises_stops_the_run() -> None:
    completed = subprocess.run([sys.executable, "-c", KILLER], capture_output=True, text=True, timeout=300)
    first, second = completed.stdout.splitlines()
    assert first == "4 processes died on task crash"
    assert second.startswith("PermissionError: access denied (run, line")
