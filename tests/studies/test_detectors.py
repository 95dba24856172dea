"""Comparison of SPP-net and R-CNN: the printed tables, the JSON content and the measured seconds."""

import json
from pathlib import Path

import pytest

from sppnet.backbones.backbone import create_backbone
from sppnet.cli.main import run
from sppnet.data.formats.detection import read_detection
from sppnet.detect.classic.fit import propose_windows
from sppnet.detect.model import Detector, Method
from sppnet.detect.options import DetectOptions
from sppnet.studies.detectors import COLUMNS, DetectorComparison, DetectorResults, comparison_content, time_detector
from tests.helpers.detection_data import write_voc


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc") / "data", 4, 3)


def test_command_prints_the_papers_tables(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare-detectors", str(data), "--test-split", "test", "--out", str(tmp_path), "--images", "3"]
    small = ["--windows", "20", "--proposals", "grid", "--hidden", "16,16", "--levels", "2,1", "--epochs", "1"]
    assert run([*command, *small, "--scales", "96", "--steps", "2", "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("ft fc7 bb", "[59.2]", "R-CNN", "speed-up", "[102]"))
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["columns"]["SPP, 5 scales"]["ap50"].keys() == {"pool5", "fc6", "ft fc6", "ft fc7", "ft fc7 bb"}
    assert len(content["columns"]["R-CNN"]["ap50"]["fc6"]) == 2
    assert content["columns"]["R-CNN"]["seconds"]["speed-up"] == 1


def test_content_has_the_speed_up_over_rcnn_and_the_papers_results() -> None:
    columns = {
        name: DetectorResults({"fc6": [0.5]}, {"in all": total}) for name, total in zip(COLUMNS, (2, 4, 8), strict=True)
    }
    content = comparison_content(DetectorComparison(columns, 1, (3, 2), 20.0, ("a.png: no such file",)))
    assert [content["columns"][name]["seconds"]["speed-up"] for name in COLUMNS] == [4, 2, 1]
    assert content["images"] == {"train": 3, "test": 2}
    assert content["problems"] == ["a.png: no such file"]
    # The speed-ups printed in the paper follow from its seconds.
    paper = content["paper"]["seconds"]
    assert tuple(round(paper["in all"][-1] / total) for total in paper["in all"]) == paper["speed-up"]


@pytest.mark.parametrize(("method", "sample"), [("spp", None), ("rcnn", 64)])
def test_only_rcnn_is_timed_on_a_sample_of_windows(
    method: Method, sample: int | None, data: Path, tmp_path: Path
) -> None:
    options = DetectOptions(
        method=method, backbone="zf5", weights="none", levels=(1,), hidden=(), proposals="grid", windows=70
    )
    voc = read_detection(data, "test")
    windows, _ = propose_windows(voc.samples[:1], len(voc.classes), options, tmp_path)
    model = Detector(options.config(voc.classes, None), create_backbone("zf5", weights=None))
    seconds, timed = time_detector(model, windows)
    assert timed == sample
    assert seconds["in all"] == pytest.approx(seconds["convolutions"] + seconds["heads"])
    assert min(seconds.values()) > 0
