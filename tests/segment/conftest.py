"""A data set of shapes, and a segmenter trained on it."""

from pathlib import Path

import pytest

import sppnet
from sppnet.cli.main import run
from sppnet.segment.model import Segmenter
from tests.helpers.segmentation_data import write_shapes
from tests.helpers.tiny_segmenter import COMMAND_OPTIONS


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", "camvid", {"train": 10, "val": 4})


@pytest.fixture(scope="session")
def trained_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segment") / "run"
    assert run(["train", "segment", str(dataset), "--out", str(out), *COMMAND_OPTIONS, "--epochs", "12"]) == 0
    return out


@pytest.fixture(scope="session")
def trained_model(trained_run: Path) -> Segmenter:
    model = sppnet.load(trained_run)
    assert isinstance(model, Segmenter)
    return model
