"""Tests of the batches for fine-tuning: composition, random draws and resuming."""

import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sppnet.detect.classic import finetune
from sppnet.detect.classic.finetune import WindowBatches, draw_windows, positives
from sppnet.detect.classic.windows import Windows
from sppnet.detect.options import DetectOptions
from tests.helpers.window_cases import HandMadeVectors, make_windows

BACKGROUND = 5
Batch = tuple[Tensor, Tensor]


def image(on: int, near: int, far: int, label: int = 0) -> Windows:
    """Create shuffled windows: `on` overlap an object by 0.5, `near` by 0.3, `far` not at all."""
    overlap = [0.5] * on + [0.3] * near + [0.0] * far
    order = random.Random(0).sample(range(len(overlap)), len(overlap))
    return make_windows([overlap[k] for k in order], [label] * len(overlap), 0, BACKGROUND)


def batches_of(windows: Sequence[Windows], **values: object) -> WindowBatches:
    options = replace(DetectOptions(steps=3), **values)  # type: ignore[arg-type]
    return WindowBatches(HandMadeVectors(windows), range(len(windows)), BACKGROUND, 0.5, options)


def epoch_of(batches: WindowBatches, epoch: int = 0, start: int = 0) -> list[Batch]:
    items = list(batches.epoch(epoch, start))
    assert all(failures == [] for _, _, failures in items)
    return [(x, labels) for x, labels, _ in items]


def same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    return all(torch.equal(x, y) for pair in zip(a, b, strict=True) for x, y in zip(*pair, strict=True))


def test_positives_overlap_an_object_by_half() -> None:
    windows = make_windows([1, 0.5, 0.4999, 0, 0.9], counts=[True, True, True, True, False])
    assert positives(windows).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("counts", "drawn"),
    [
        ((30, 60, 100), (16, 48, 0)),
        ((30, 40, 100), (16, 40, 8)),
        ((3, 60, 100), (3, 60, 1)),
        ((0, 0, 100), (0, 0, 64)),
        ((20, 0, 0), (16, 0, 0)),
        ((2, 3, 4), (2, 3, 4)),
        ((0, 0, 0), (0, 0, 0)),
    ],
)
def test_draws_positives_then_near_then_far_background(
    counts: tuple[int, int, int], drawn: tuple[int, int, int]
) -> None:
    windows = image(*counts)
    rows = draw_windows(windows, 16, 64, random.Random(1))
    assert rows.dtype == torch.long
    assert len(rows.unique()) == len(rows)
    overlap = windows.overlap[rows].tolist()
    assert tuple(sum(abs(value - level) < 1e-6 for value in overlap) for level in (0.5, 0.3, 0)) == drawn
    assert all(value >= 0.5 for value in overlap[: drawn[0]])


def test_near_background_starts_at_an_overlap_of_one_tenth() -> None:
    windows = make_windows([0.0999, 0.1, 0.4999])
    for seed in range(8):
        assert set(draw_windows(windows, 1, 2, random.Random(seed)).tolist()) == {1, 2}
    assert set(draw_windows(windows, 1, 3, random.Random(0)).tolist()) == {0, 1, 2}
    assert set(draw_windows(windows, 1, 3, random.Random(0), far=False).tolist()) == {1, 2}


def test_windows_on_difficult_objects_are_never_drawn() -> None:
    windows = make_windows([0.9, 0.9, 0.3, 0.3, 0, 0], counts=[True, False] * 3)
    assert sorted(draw_windows(windows, 9, 99, random.Random(0)).tolist()) == [0, 2, 4]


def test_repeated_draws_reach_every_window() -> None:
    windows, rng = image(30, 60, 0), random.Random(0)
    drawn = torch.cat([draw_windows(windows, 16, 64, rng) for _ in range(40)])
    assert len(drawn.unique()) == 90


def test_batch_has_32_positives_and_96_background_windows() -> None:
    windows = [image(30, 60, 60, label) for label in range(BACKGROUND)]
    batches = epoch_of(batches_of(windows, mirror=False))
    assert len(batches) == 3
    for x, labels in batches:
        assert x.dtype == torch.float32
        assert len(x) == len(labels) == 128
        assert (labels[:32] != BACKGROUND).all()
        assert (labels[32:] == BACKGROUND).all()
        for (number, row, mirrored), label in zip((x / 0.5).long().tolist(), labels.tolist(), strict=True):
            assert label == (number if windows[number].overlap[row] >= 0.5 else BACKGROUND)
            assert not mirrored
        assert len(x.unique(dim=0)) == 128
        assert len(x[:, 0].unique()) == BACKGROUND


def test_batches_depend_only_on_seed_epoch_and_step() -> None:
    windows = [image(20, 40, 40, label) for label in range(4)]
    batches = batches_of(windows)
    first = epoch_of(batches)
    assert same(epoch_of(batches), first)
    random.seed(5)
    torch.manual_seed(5)
    assert same(epoch_of(batches_of(windows)), first)
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(epoch_of(batches, 1)[0][0], first[0][0])
    assert not torch.equal(epoch_of(batches_of(windows, seed=1))[0][0], first[0][0])


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_resumed_epoch_continues_with_the_same_batches(start: int) -> None:
    windows = [image(20, 40, 40, label) for label in range(4)]
    uninterrupted = epoch_of(batches_of(windows), 2)
    assert same(epoch_of(batches_of(windows), 2, start), uninterrupted[start:])


@pytest.mark.parametrize(
    ("images", "size", "on"),
    [
        ([(5, 60, 60), (0, 64, 64), (0, 64, 0)], 128, 5),
        ([(0, 64, 64), (0, 64, 0)], 128, 0),
        ([(2, 3, 4)], 9, 2),
        ([(20, 0, 0)], 16, 16),
        ([(0, 0, 0), (1, 1, 0)], 2, 1),
    ],
)
def test_background_replaces_missing_positives_if_available(
    images: list[tuple[int, int, int]], size: int, on: int
) -> None:
    for x, labels in epoch_of(batches_of([image(*counts) for counts in images])):
        assert len(x) == len(labels) == size
        assert int((labels != BACKGROUND).sum()) == on


def test_half_of_the_images_are_mirrored_in_each_epoch() -> None:
    windows = [image(4, 12, 0) for _ in range(60)]

    def mirrored(epoch: int) -> list[list[float]]:
        x = torch.cat([x for x, _ in epoch_of(batches_of(windows, steps=6), epoch)]) / 0.5
        return [x[x[:, 0] == number, 2].unique().tolist() for number in range(60)]

    flags = mirrored(0)
    assert all(len(flag) == 1 for flag in flags)
    assert 15 < sum(flag == [1] for flag in flags) < 45
    assert flags != mirrored(1)


def test_only_usable_images_are_drawn() -> None:
    windows = [image(8, 20, 0) for _ in range(4)]
    batches = WindowBatches(HandMadeVectors(windows), [0, 3], BACKGROUND, 1.0, DetectOptions(steps=2))
    assert {number for x, _ in epoch_of(batches) for number in x[:, 0].tolist()} == {0, 3}


def test_memory_limits_the_images_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch draws other images, at least one."""
    windows = [image(4, 12, 0) for _ in range(30)]
    drawn = []
    for memory, images in ((2 * 3 * 64 * 5, 5), (1, 1)):
        monkeypatch.setattr(finetune, "_MEMORY", memory)
        for epoch in (0, 1):
            x = torch.cat([x for x, _ in epoch_of(batches_of(windows), epoch)])
            drawn.append(set(x[:, 0].tolist()))
            assert len(drawn[-1]) == images
    assert drawn[0] != drawn[1]


def test_processes_share_the_windows_of_a_batch_by_image() -> None:
    windows = [image(4, 12, 0) for _ in range(7)]
    options = DetectOptions(steps=3, batch=32)
    whole, *parts = (
        epoch_of(WindowBatches(HandMadeVectors(windows), range(7), BACKGROUND, 1.0, options, fabric))
        for fabric in (None, *(SimpleNamespace(global_rank=rank, world_size=3) for rank in range(3)))
    )
    shares = [{number for x, _ in part for number in x[:, 0].tolist()} for part in parts]
    assert sorted(map(len, shares)) == [2, 2, 3]
    for (x, labels), *divided in zip(whole, *parts, strict=True):
        rows = torch.cat([torch.column_stack(part) for part in divided])
        assert torch.equal(rows.unique(dim=0), torch.column_stack((x, labels)).unique(dim=0))
        assert len(rows) == len(x)


def test_process_without_images_gets_empty_batches() -> None:
    fabric = SimpleNamespace(global_rank=1, world_size=2)
    batches = WindowBatches(HandMadeVectors([image(4, 12, 0)]), [0], BACKGROUND, 1.0, DetectOptions(steps=2), fabric)
    assert [(x.shape, labels.tolist()) for x, labels in epoch_of(batches)] == [((0, 3), [])] * 2


def test_windows_have_no_common_side() -> None:
    assert batches_of([image(1, 1, 1)]).side(0) is None
