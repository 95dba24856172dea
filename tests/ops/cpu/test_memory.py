"""Reuse of the memory of large outputs."""

import gc

import pytest
import torch

from sppnet import pyramid_pool
from sppnet.ops.cpu import memory


def test_memory_of_dropped_tensors_is_reused() -> None:
    memory._spare.clear()
    first = memory.empty((600, 1000), torch.float32)
    address, view = first.data_ptr(), first[5:7]
    del first
    gc.collect()
    assert not memory._spare  # the view keeps it alive
    del view
    assert len(memory._spare) == 1
    reused = memory.empty((590, 1000), torch.float32)
    assert reused.data_ptr() == address
    assert reused.shape == (590, 1000)
    assert memory.empty((600, 1000), torch.float32).data_ptr() != address


def test_small_and_huge_blocks_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._spare.clear()
    del (small := [memory.empty((10, 10), torch.float32)])[:]
    monkeypatch.setattr(memory, "_LARGEST", 1 << 21)
    del (huge := [memory.empty((3000, 1000), torch.float32)])[:]
    assert small == huge == []
    assert not memory._spare


def test_total_size_of_spare_blocks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._spare.clear()
    monkeypatch.setattr(memory, "_MAX_SPARE", 4 << 20)
    blocks = [memory.empty((300 + 10 * i, 1000), torch.float32) for i in range(5)]
    blocks.clear()
    assert 0 < sum(block.size for block in memory._spare.values()) <= 4 << 20


def test_live_results_do_not_share_memory() -> None:
    x = torch.randn(8, 64, 20, 20)
    results = [pyramid_pool(x + i, (24, 6)) for i in range(4)]
    for i, vectors in enumerate(results):
        assert torch.equal(vectors, pyramid_pool(x + i, (24, 6)))
