"""Fixtures shared by all tests."""

import random
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("tests.helpers.browsing", "tests.helpers.web_clients")

# One thread per process: on a busy machine, more threads slow each other down.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Disable shape checks, as in normal use, to test the error messages of the functions themselves."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def detector_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of an untrained detector that finds objects in any image."""
    # Not at the top: this file is imported before the shape checks of the package are installed.
    from sppnet.backbones.backbone import create_backbone
    from sppnet.detect.model import Detector, DetectorConfig
    from sppnet.training.run import save

    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    config = DetectorConfig(
        ("cat", "dog"), "spp", "zf5", None, (2, 1), (96,), 200, scorer="softmax", proposals="grid", windows=50
    )
    save(Detector(config, create_backbone("zf5")), folder)
    return folder
