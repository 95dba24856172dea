"""Predict and features on Ray, and on fsspec paths: what comes out equals what one process writes."""

import importlib.util
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

from sppnet import Detector, DetectorConfig
from sppnet.backbones.backbone import create_backbone
from sppnet.cli.main import run
from sppnet.data.listing import image_names, list_images
from sppnet.distributed.ray_engine import cluster, import_ray
from sppnet.errors import ImageError
from sppnet.features.shards import read_metadata
from sppnet.features.vectors import read_features
from sppnet.io import remote
from sppnet.io.part_files import Parts, failure_line, failure_of, read_answers
from sppnet.segment.model import SegmenterConfig
from sppnet.segment.model import create_segmenter as new_segmenter
from sppnet.training.run import save_run

COUNT = 40  # images, of a size of their own each: so the batches make no difference to the last bit


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


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    config = DetectorConfig(
        ("cat", "dog"), "spp", "zf5", None, (2, 1), (96,), 200, scorer="softmax", proposals="grid", windows=50
    )
    save_run(Detector(config, create_backbone("zf5")), folder)
    return folder


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "sppnet", *map(str, arguments)]


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as Ray has it for a process with one CPU
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, env=environment)


def busy_below(process: int) -> dict[int, int]:
    """The processes below this one that are at a task, by the titles that Ray gives them, and their seconds * 100."""
    parents, titles, ticks = {}, {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)], ticks[int(folder.name)] = int(stat[1]), int(stat[11])
                titles[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:
                continue
    found = {}
    for one in titles:
        above = one
        while above in parents and above != process:
            above = parents[above]
        if above == process and titles[one].startswith("ray::MapWorker") and ".submit" in titles[one]:
            found[one] = ticks[one]
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_a_killed_worker_costs_no_result_and_no_duplicate(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes answer, one is killed in the middle; the lines are those of the local engine."""
    assert run(["predict", "imagenet", str(images), "--json", "--device", "cpu"]) == 1
    plain = capsys.readouterr().out
    options = ("--engine", "ray", "--actors", "2", "--shard", "4", "--device", "cpu")
    arguments = ["predict", "imagenet", str(images), *options, "--out", str(tmp_path)]
    started = subprocess.Popen(command(*arguments, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        parts, before, victims = 0, dict[int, int](), list[int]()
        while not (victims and parts) and time.monotonic() < deadline:
            time.sleep(0.005)
            busy, parts_before, parts = busy_below(started.pid), parts, len(list(tmp_path.glob("part-*.jsonl")))
            if parts > parts_before:
                before = busy
            # Who has computed since the last file was written is in the middle of a task, not between two.
            victims = [one for one in busy if busy[one] >= before.get(one, busy[one]) + 2]
        os.kill(victims[0], signal.SIGKILL)
        output, messages = started.communicate(timeout=240)
    finally:
        started.kill()
    assert started.returncode == 1, messages
    assert output == plain
    assert "processes died 1 times; their images were done again" in messages
    assert "2 images could not be used" in messages
    assert "text.jpg: not an image" in messages
    assert "core_worker" not in messages
    assert "Traceback" not in messages
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "index.json",
        *(f"part-{number:05d}.jsonl" for number in range(11)),
    ]
    sources = [answer["source"] for answer in read_answers(tmp_path)]
    assert sources == [str(path) for path in list_images(images)]
    # Once more there is nothing to do, and Ray is not asked for.
    times = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("part-*")}
    assert run([*arguments, "--ray-address", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().out == f"{COUNT} answers in 11 files: {tmp_path}\n"
    assert times == {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("part-*")}
    assert run([*arguments, "--resize", "shorter-side:64"]) == 2
    message = "has answers of another job: resize None, not shorter-side:64; take another folder"
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_detector_on_ray_answers_as_the_local_engine(detector: Path, images: Path, tmp_path: Path) -> None:
    options = ("--min-score", "0.3", "--json", "--device", "cpu", "--head", "bfloat16")
    plain = call("predict", detector, images / "more", *options)
    found = call(
        "predict", detector, f"file://{images}/more", *options, "--engine", "ray", "--out", tmp_path, "--shard", "7"
    )
    assert found.returncode == plain.returncode == 1
    assert found.stdout.replace("file://", "") == plain.stdout
    assert any(json.loads(line)["objects"] for line in plain.stdout.splitlines())


@pytest.mark.slow
def test_a_finished_part_is_not_made_again(images: Path, tmp_path: Path) -> None:
    arguments = ("predict", "imagenet", images, "--engine", "ray", "--actors", "2", "--shard", "16", "--out", tmp_path)
    first = call(*arguments, "--json")
    (tmp_path / "part-00001.jsonl").unlink()
    times = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("part-*")}
    assert call(*arguments, "--json").stdout == first.stdout
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("part-*")}
    assert {name for name, stamp in after.items() if times.get(name) != stamp} == {"part-00001.jsonl"}


def write_boxes(images: Path, file: Path) -> Path:
    names = [path.relative_to(images).as_posix() for path in list_images(images) if path.stat().st_size > 20]
    rows = [f"{name},{step},2,{60 + step},90,{name}-{step}" for name in names for step in (0, 10)]
    file.write_text("\n".join(["image,x1,y1,x2,y2,id", *rows]) + "\n")
    return file


def assert_same_vectors(found: str | Path, expected: Path) -> None:
    pairs = list(zip(read_features(found), read_features(expected), strict=True))
    assert len(pairs) == COUNT
    for one, other in pairs:
        assert (one.image, one.ids) == (other.image, other.ids)
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.vectors, other.vectors)


@pytest.mark.slow
def test_features_on_ray_are_those_of_the_local_engine(images: Path, tmp_path: Path) -> None:
    boxes = write_boxes(images, tmp_path / "boxes.csv")
    options = ("--backbone", "zf5", "--weights", "none", "--levels", "2,1", "--scales", "96", "--device", "cpu")
    plain = call("features", images, "--boxes", boxes, "--out", tmp_path / "plain", *options)
    assert plain.returncode == 0, plain.stderr
    url = f"file://{tmp_path}/ray"
    found = call("features", f"file://{images}", "--boxes", boxes, "--out", url, *options, "--engine", "ray")
    assert found.returncode == 0, found.stderr
    assert_same_vectors(url, tmp_path / "plain")


def test_features_of_a_url_are_those_of_the_folder(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = write_boxes(images, tmp_path / "boxes.csv")
    options = ["--backbone", "zf5", "--weights", "none", "--levels", "1", "--scales", "64"]
    assert run(["features", str(images), "--boxes", str(boxes), "--out", str(tmp_path / "plain"), *options]) == 0
    arguments: list[str] = []
    for storage in ("safetensors", "parquet"):
        out = f"file://{tmp_path}/{storage}/"
        arguments = ["features", f"file://{images}", "--boxes", f"file://{boxes}", "--out", out, "--format", storage]
        assert run([*arguments, *options]) == 0
        assert_same_vectors(out, tmp_path / "plain")
        file = tmp_path / storage / f"00000.{storage}"
        before = file.stat().st_mtime_ns
        assert run([*arguments, *options]) == 0
        assert file.stat().st_mtime_ns == before
    assert run([*arguments, *options, "--draw", "1"]) == 2
    assert "draw: pictures are written into a local folder only" in capsys.readouterr().err
    metadata = read_metadata(f"file://{tmp_path}/safetensors/00000.safetensors")
    assert metadata is not None
    assert metadata == read_metadata(tmp_path / "safetensors" / "00000.safetensors")
    assert read_metadata(f"file://{tmp_path}/none.safetensors") is None


def test_a_name_that_a_url_lacks_is_told_with_the_nearest(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x1,y1,x2,y2\n000.pgn,0,0,9,9\n")
    assert run(["features", f"file://{images}", "--boxes", str(boxes), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"are missing in file://{images}: 000.pgn (line 2)" in message
    assert "000.png" in message


def test_images_of_a_url_come_in_the_order_of_the_folder(tmp_path: Path) -> None:
    for name in (
        "b.png",
        "a/z.JPG",
        "a/b/c.png",
        "c/a.png",
        "B.jpeg",
        ".hidden.png",
        "a/.git/d.png",
        "note.txt",
        "text/a.txt",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert image_names(str(tmp_path)) == [str(path) for path in list_images(tmp_path)]
    assert image_names(f"file://{tmp_path}/") == [f"file://{path}" for path in list_images(tmp_path)]
    assert image_names(f"file://{tmp_path}/note.txt") == [f"file://{tmp_path}/note.txt"]
    assert image_names(f"{tmp_path}/**/*.png") == [str(tmp_path / name) for name in ("b.png", "a/b/c.png", "c/a.png")]
    with pytest.raises(ImageError, match="no file fits the pattern"):
        image_names(f"file://{tmp_path}/*.tif")
    with pytest.raises(ImageError, match="no such file or folder"):
        image_names(f"file://{tmp_path}/none")
    with pytest.raises(ImageError, match="holds no image"):
        image_names(f"file://{tmp_path}/text")


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_file_is_whole_or_not_there(tmp_path: Path, prefix: str) -> None:
    where = remote.place(f"{prefix}{tmp_path}/a.txt")
    remote.write_text("old", where)
    with pytest.raises(TypeError), remote.whole_file(where) as file:
        file.write_text("half") + "more"  # type: ignore[operator]
    assert (tmp_path / "a.txt").read_text() == "old"
    assert remote.list_names(remote.place(f"{prefix}{tmp_path}")) == {"a.txt"}
    with remote.whole_file(where) as file:
        file.write_text("new")
        assert remote.read_bytes(where) == b"old"
    assert remote.read_bytes(where, 2) == b"ne"


def test_stores_say_which_package_they_need() -> None:
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(ModuleNotFoundError, match="gs:// needs gcsfs; install it with pip install gcsfs"):
        remote.filesystem("gs://bucket/photos")
    with pytest.raises(ValueError, match="expected a path, or a URL such as s3://bucket/folder"):
        remote.filesystem("s4://bucket/photos")


def test_ray_is_told_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "info")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "sppnet\[ray\]"'):
        import_ray()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_parts_refuse_another_job_and_know_what_is_missing(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "out", ["a", "b", "c"], 2, {"model": "classifier"})
    assert parts.open() == [0, 1]
    with pytest.raises(ValueError, match="are not complete; the same command goes on"):
        read_answers(parts.folder)
    line = failure_line("c", 'it is "failure": text')
    remote.write_text(line + "\n", remote.join(parts.folder, parts.file(1)))
    (tmp_path / "out" / "part-00000.123.part.jsonl").touch()  # of a killed process
    assert parts.open() == [0]
    assert failure_of(line) == ("c", 'it is "failure": text')
    assert failure_of('{"source": "\\"failure\\": "}') is None
    for other in (
        Parts(parts.folder, ["a", "b"], 2, parts.settings),
        Parts(parts.folder, parts.names, 3, parts.settings),
        Parts(parts.folder, parts.names, 2, {"model": "detector"}),
    ):
        with pytest.raises(ValueError, match="has answers of another job"):
            other.open()
    remote.write_text('{"source": "a"}\n{"source": "b"}\n', remote.join(parts.folder, parts.file(0)))
    assert parts.open() == []
    parts.close([("c", "reason")])
    assert [answer["source"] for answer in read_answers(str(parts.folder))] == ["a", "b", "c"]
    assert remote.list_names(parts.folder) == {"index.json", "part-00000.jsonl", "part-00001.jsonl"}
    (tmp_path / "out" / "index.json").unlink()
    with pytest.raises(ValueError, match=r"but no index\.json; take another folder"):
        parts.open()
    with pytest.raises(ValueError, match="shard: expected at least 1 image; got 0"):
        Parts(tmp_path, ["a"], 0, {}).open()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--actors", "2"], "actors: an option of --engine ray"),
        (["--shard", "2"], "shard: an option of --engine ray"),
        (["--engine", "ray"], "out: --engine ray writes its answers into a folder"),
        (["--engine", "ray", "--out", "{out}", "--views", "7"], "views: expected one of full, 10, 18, 96"),
        (["--engine", "ray", "--out", "{out}", "--batch", "0"], "batch: expected at least 1"),
        (["--engine", "ray", "--out", "{out}", "--cache", "x"], "cache: an option for detectors"),
        (["--engine", "ray", "--out", "{out}", "--actors", "0"], "actors: expected at least 1 process; got 0"),
        (["--engine", "ray", "--out", "{out}", "--ray-address", "here"], "ray-address: expected auto, host:port or"),
    ],
)
def test_options_that_cannot_be_are_told(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    arguments = [option.format(out=tmp_path / "out") for option in options]
    assert run(["predict", "imagenet", str(images), *arguments]) == 2
    assert text in capsys.readouterr().err


def test_detectors_and_segmenters_on_ray_say_what_they_cannot(
    detector: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(run_folder: Path, *options: str) -> str:
        arguments = ["--engine", "ray", "--out", str(tmp_path / "out"), *options]
        assert run(["predict", str(run_folder), str(images), *arguments]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "workers: an option of --engine local" in refusal(detector, "--workers", "3")
    assert "cache: an option of --engine local" in refusal(detector, "--cache", str(tmp_path / "cache"))
    assert "it reads no file yet; got boxes.csv" in refusal(detector, "--proposals", "boxes.csv")
    save_run(new_segmenter(SegmenterConfig(("sky", "sea"), width=8), None), tmp_path / "run")
    assert "engine: ray labels no pixels yet" in refusal(tmp_path / "run")


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"nobody answers at 127\.0\.0\.1:1"), cluster("127.0.0.1:1", None):
        pass
    assert time.monotonic() - start < 20


KILLER = """
import os
from dataclasses import dataclass
from sppnet.distributed.ray_engine import WorkerError, cluster, run_tasks

@dataclass
class Killer:
    def start(self, device):
        pass

    def run(self, task):
        if task == "deadly":
            os.kill(os.getpid(), 9)
        if task == "refused":
            raise PermissionError("no such bucket of yours")
        return task.upper()

with cluster(None, 2):
    for tasks in (["a", "deadly", "b"], ["a", "refused"]):
        try:
            for done in run_tasks(Killer(), tasks, 2, "cpu"):
                results = done.result
        except WorkerError as error:
            message = str(error)
        os.write(1, (message + chr(10)).encode())
"""


@pytest.mark.slow
def test_a_task_that_ends_its_processes_ends_the_work() -> None:
    found = subprocess.run([sys.executable, "-c", KILLER], capture_output=True, text=True, timeout=300)
    first, second = found.stdout.splitlines()
    assert first == "4 processes died at deadly"
    assert second.startswith("PermissionError: no such bucket of yours (run, line")
