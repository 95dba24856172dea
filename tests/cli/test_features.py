"""`sppnet features`: printed summary, clipped boxes and invalid arguments."""

from pathlib import Path

import pytest
from PIL import Image

from sppnet.cli.main import run
from sppnet.features.vectors import read_features

OPTIONS = ["--backbone", "zf5", "--weights", "none", "--levels", "1", "--scales", "64"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    Image.effect_noise((80, 64), 60).save(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("image,x1,y1,x2,y2\na.png,0,0,40,40\na.png,40,30,90,64\n")
    return tmp_path


def features(images: Path, *options: str) -> int:
    out = str(images / "out")
    return run(["features", str(images), "--boxes", str(images / "boxes.csv"), "--out", out, *OPTIONS, *options])


def test_prints_a_summary_and_lists_clipped_boxes(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert features(images, "--on-bad", "clip") == 0
    captured = capsys.readouterr()
    assert captured.out == f"2 vectors of length 256 in 1 files: {images / 'out'}\n"
    assert "1 boxes or images were clipped or skipped" in captured.err
    assert "line 3" in (images / "out" / "problems.txt").read_text()
    (written,) = read_features(images / "out")
    assert written.boxes[1].tolist() == [40, 30, 80, 64]


@pytest.mark.parametrize("scales", ["100;200", "", "-1", "1.5"])
def test_rejects_malformed_scales(images: Path, scales: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert features(images, f"--scales={scales}") == 2
    message = f"scales: expected pixels such as 688 or 480,576,688,864,1200, got '{scales}'"
    assert message in capsys.readouterr().err
    assert not (images / "out").exists()
