"""Fixtures shared by all tests."""

import random
from collections.abc import Iterator

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
