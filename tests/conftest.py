"""Fixtures shared by all tests."""

import random
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("tests.helpers.browsing", "tests.helpers.web_clients")

# One thread a worker: threads that wait for each other on a busy machine cost more than they bring.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shape checks off, as for a user: what the function itself says of a wrong argument is tested."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
