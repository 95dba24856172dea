"""Small data and runs for the tests of commands."""

from pathlib import Path

import pytest
import torch

from sppnet.cli.main import run
from sppnet.segment.model import create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.training.run import save
from tests.helpers.images import write_classes


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with the splits train and test."""
    root = tmp_path_factory.mktemp("data")
    write_classes(root / "train", 4)
    write_classes(root / "test", 2)
    return root


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of a classifier trained on `data`."""
    out = tmp_path_factory.mktemp("run")
    assert run(["train", "classify", str(data), "--freeze-backbone", "--levels", "2,1", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of an untrained segmenter."""
    folder = tmp_path_factory.mktemp("segmenter")
    torch.manual_seed(0)
    save(create_segmenter(SegmenterConfig(("sky", "sea"), width=8), None), folder)
    return folder
