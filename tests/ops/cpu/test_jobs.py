"""Threads, compilation and cache of the CPU kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sppnet.ops.cpu import dispatch as cpu
from sppnet.ops.cpu import jobs

GRIDS = [(6, 6), (2, 2), (1, 1)]


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_result_does_not_depend_on_number_of_threads(
    threads: int, openmp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test torch's OpenMP threads and the thread pool that replaces them."""
    x = torch.randn(3, 80, 15, 9)
    expected = cpu.forward(x, None, GRIDS, "adaptive", "max", True)
    grad = torch.randn_like(expected[0])
    shape = list(x.shape)
    expected_grad = cpu.backward(grad, expected[1], None, shape, False, GRIDS, "adaptive", "max")
    monkeypatch.setattr(jobs, "_SERIAL", 0)
    if not openmp:
        monkeypatch.setattr(jobs, "_openmp", lambda: None)
    torch.set_num_threads(threads)
    try:
        actual = cpu.forward(x, None, GRIDS, "adaptive", "max", True)
        actual_grad = cpu.backward(grad, actual[1], None, shape, False, GRIDS, "adaptive", "max")
    finally:
        torch.set_num_threads(1)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    assert torch.equal(actual_grad, expected_grad)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_pooling_after_fork() -> None:
    """A process with two threads forks: parent and child both pool and exit."""
    program = """
import os, torch
from sppnet import pyramid_pool
torch.set_num_threads(2)
x = torch.randn(4, 128, 30, 30)
expected = pyramid_pool(x, (6, 2, 1))
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(pyramid_pool(x, (6, 2, 1)), expected) else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
raise SystemExit(code or not torch.equal(pyramid_pool(x, (6, 2, 1)), expected))
"""
    process = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=120, check=False)
    assert process.returncode == 0


def test_compilers_are_not_imported_with_the_package() -> None:
    program = "import sys, sppnet; raise SystemExit('numba' in sys.modules or 'triton.language' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0


@pytest.mark.parametrize("damage", [b"no pickle", pytest.param(b"", marks=pytest.mark.slow)])
def test_damaged_cache_is_ignored(damage: bytes, tmp_path: Path) -> None:
    program = "import torch, sppnet; print(sppnet.pyramid_pool(torch.ones(1, 16, 3, 3), (1,)).sum())"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def pool_in_new_process() -> str:
        command = [sys.executable, "-W", "ignore", "-c", program]
        return subprocess.run(command, env=environment, timeout=300, check=True, capture_output=True, text=True).stdout

    assert pool_in_new_process() == "tensor(16.)\n"
    indexes = list(tmp_path.rglob("*.nbi"))
    assert indexes
    for index in indexes:
        index.write_bytes(damage)
    assert pool_in_new_process() == "tensor(16.)\n"
