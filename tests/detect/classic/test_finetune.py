"""Batches of windows for fine-tuning: of what they are made, and that they come again."""

import random
from collections.abc import Sequence
from dataclasses import replace

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
    """So many windows that overlap an object by half, by 0.3, and not at all, in an order of their own."""
    overlap = [0.5] * on + [0.3] * near + [0.0] * far
    order = random.Random(0).sample(range(len(overlap)), len(overlap))
    return make_windows([overlap[k] for k in order], [label] * len(overlap), 0, BACKGROUND)


def batches_of(windows: Sequence[Windows], **values: object) -> WindowBatches:
    options = replace(DetectOptions(steps=3), **values)  # type: ignore[arg-type]
    return WindowBatches(HandMadeVectors(windows), range(len(windows)), BACKGROUND, 0.5, options)


def epoch_of(batches: WindowBatches, epoch: int = 0, start: int = 0) -> list[Batch]:
    made = list(batches.epoch(epoch, start))
    assert all(failures == [] for _, _, failures in made)
    return [(x, labels) for x, labels, _ in made]


def same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    pairs = [(one[part], two[part]) for one, two in zip(a, b, strict=True) for part in (0, 1)]
    return all(torch.equal(one, two) for one, two in pairs)


def test_positives_overlap_by_half_and_count() -> None:
    windows = make_windows([1, 0.5, 0.4999, 0, 0.9], counts=[True, True, True, True, False])
    assert positives(windows).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("there", "drawn"),
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
def test_a_quarter_is_positive_and_background_is_near_objects_first(
    there: tuple[int, int, int], drawn: tuple[int, int, int]
) -> None:
    windows = image(*there)
    rows = draw_windows(windows, 16, 64, random.Random(1))
    assert rows.dtype == torch.long
    assert len(rows.unique()) == len(rows)
    overlap = windows.overlap[rows].tolist()
    counted = tuple(sum(abs(value - level) < 1e-6 for value in overlap) for level in (0.5, 0.3, 0))
    assert counted == drawn
    assert all(value >= 0.5 for value in overlap[: drawn[0]])


def test_background_is_near_from_a_tenth_on() -> None:
    windows = make_windows([0.0999, 0.1, 0.4999])
    for seed in range(8):
        assert set(draw_windows(windows, 1, 2, random.Random(seed)).tolist()) == {1, 2}
    assert set(draw_windows(windows, 1, 3, random.Random(0)).tolist()) == {0, 1, 2}
    assert set(draw_windows(windows, 1, 3, random.Random(0), far=False).tolist()) == {1, 2}


def test_windows_that_do_not_count_are_never_drawn() -> None:
    windows = make_windows([0.9, 0.9, 0.3, 0.3, 0, 0], counts=[True, False] * 3)
    assert sorted(draw_windows(windows, 9, 99, random.Random(0)).tolist()) == [0, 2, 4]


def test_every_positive_window_is_drawn_in_its_turn() -> None:
    windows, rng = image(30, 60, 0), random.Random(0)
    drawn = torch.cat([draw_windows(windows, 16, 64, rng) for _ in range(40)])
    assert len(drawn.unique()) == 90


def test_a_batch_is_32_windows_on_objects_and_96_of_background() -> None:
    windows = [image(30, 60, 60, label) for label in range(BACKGROUND)]
    made = epoch_of(batches_of(windows, mirror=False))
    assert len(made) == 3
    for x, labels in made:
        assert x.dtype == torch.float32
        assert len(x) == len(labels) == 128
        assert (labels[:32] != BACKGROUND).all()
        assert (labels[32:] == BACKGROUND).all()
        for (number, row, mirrored), label in zip((x / 0.5).long().tolist(), labels.tolist(), strict=True):
            assert label == (number if windows[number].overlap[row] >= 0.5 else BACKGROUND)
            assert not mirrored
        assert len(x.unique(dim=0)) == 128
        assert len(x[:, 0].unique()) == BACKGROUND


def test_batches_depend_on_seed_epoch_and_step_alone() -> None:
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
def test_a_resumed_epoch_goes_on_with_the_undisturbed_ones_batches(start: int) -> None:
    windows = [image(20, 40, 40, label) for label in range(4)]
    undisturbed = epoch_of(batches_of(windows), 2)
    assert same(epoch_of(batches_of(windows), 2, start), undisturbed[start:])


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
def test_where_there_are_few_windows_batches_have_what_there_is(
    images: list[tuple[int, int, int]], size: int, on: int
) -> None:
    """The place of missing objects is taken by background, as far as it goes."""
    for x, labels in epoch_of(batches_of([image(*one) for one in images])):
        assert len(x) == len(labels) == size
        assert int((labels != BACKGROUND).sum()) == on


def test_a_coin_mirrors_whole_images() -> None:
    windows = [image(4, 12, 0) for _ in range(60)]
    made = torch.cat([x for x, _ in epoch_of(batches_of(windows, steps=6))]) / 0.5
    tosses = [made[made[:, 0] == number, 2].unique().tolist() for number in range(60)]
    assert all(len(toss) == 1 for toss in tosses)
    assert 15 < sum(toss == [1] for toss in tosses) < 45
    again = torch.cat([x for x, _ in epoch_of(batches_of(windows, steps=6), 1)]) / 0.5
    assert tosses != [again[again[:, 0] == number, 2].unique().tolist() for number in range(60)]


def test_images_that_cannot_be_read_are_not_asked() -> None:
    windows = [image(8, 20, 0) for _ in range(4)]
    batches = WindowBatches(HandMadeVectors(windows), [0, 3], BACKGROUND, 1.0, DetectOptions(steps=2))
    assert {number for x, _ in epoch_of(batches) for number in x[:, 0].tolist()} == {0, 3}


def test_memory_bounds_the_images_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ones each epoch; at least one."""
    windows = [image(4, 12, 0) for _ in range(30)]
    asked = []
    for memory, images in ((2 * 3 * 64 * 5, 5), (1, 1)):
        monkeypatch.setattr(finetune, "_MEMORY", memory)
        for epoch in (0, 1):
            made = torch.cat([x for x, _ in epoch_of(batches_of(windows), epoch)])
            asked.append(set(made[:, 0].tolist()))
            assert len(asked[-1]) == images
    assert asked[0] != asked[1]


def test_windows_have_sizes_of_their_own() -> None:
    assert batches_of([image(1, 1, 1)]).side(0) is None
