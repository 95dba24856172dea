"""Threads and memory of the CPU kernels."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sppnet import pyramid_pool
from sppnet.ops.cpu import dispatch as cpu
from sppnet.ops.cpu import jobs, memory

GRIDS = [(6, 6), (2, 2), (1, 1)]


def test_memory_comes_back_and_is_given_again() -> None:
    memory._spare.clear()
    first = memory.empty((600, 1000), torch.float32)
    place, view = first.data_ptr(), first[5:7]
    del first
    gc.collect()
    assert not memory._spare  # a view holds it
    del view
    assert len(memory._spare) == 1
    again = memory.empty((590, 1000), torch.float32)
    assert again.data_ptr() == place
    assert again.shape == (590, 1000)
    assert memory.empty((600, 1000), torch.float32).data_ptr() != place


def test_small_and_huge_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._spare.clear()
    del (small := [memory.empty((10, 10), torch.float32)])[:]
    monkeypatch.setattr(memory, "_LARGEST", 1 << 21)
    del (huge := [memory.empty((3000, 1000), torch.float32)])[:]
    assert small == huge == []
    assert not memory._spare


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._spare.clear()
    monkeypatch.setattr(memory, "_KEPT", 4 << 20)
    blocks = [memory.empty((300 + 10 * i, 1000), torch.float32) for i in range(5)]
    blocks.clear()
    assert 0 < sum(block.size for block in memory._spare.values()) <= 4 << 20


def test_results_that_are_held_do_not_share_memory() -> None:
    x = torch.randn(8, 64, 20, 20)
    kept = [pyramid_pool(x + i, (24, 6)) for i in range(4)]
    for i, vectors in enumerate(kept):
        assert torch.equal(vectors, pyramid_pool(x + i, (24, 6)))


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads: int, openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torch's OpenMP runtime, and of the pool that takes its part where there is another."""
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
        found = cpu.forward(x, None, GRIDS, "adaptive", "max", True)
        found_grad = cpu.backward(grad, found[1], None, shape, False, GRIDS, "adaptive", "max")
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found_grad, expected_grad)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_in_the_middle_of_threads() -> None:
    """Parent with two threads, then a child by fork: the child pools on one thread and ends."""
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
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=120, check=False)
    assert ended.returncode == 0


def test_the_compiler_is_imported_with_the_first_map_only() -> None:
    program = "import sys, sppnet; raise SystemExit('numba' in sys.modules or 'triton.language' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0


@pytest.mark.parametrize("damage", [b"", b"no pickle"])
def test_a_damaged_cache_is_done_without(damage: bytes, tmp_path: Path) -> None:
    program = "import torch, sppnet; print(sppnet.pyramid_pool(torch.ones(1, 16, 3, 3), (1,)).sum())"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def call() -> str:
        command = [sys.executable, "-W", "ignore", "-c", program]
        return subprocess.run(command, env=environment, timeout=300, check=True, capture_output=True, text=True).stdout

    assert call() == "tensor(16.)\n"
    indexes = list(tmp_path.rglob("*.nbi"))
    assert indexes
    for index in indexes:
        index.write_bytes(damage)
    assert call() == "tensor(16.)\n"
