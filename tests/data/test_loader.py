"""Padded batches and batches of similar sizes, for the training loops of users."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from sppnet import ClassifierConfig, SizeBatchSampler, collate_images, create_classifier, mixed_size_loader
from sppnet.data.batching import epoch_batches, padding_fraction

SIZES = [(40 + 7 * index % 30, 40 + 11 * index % 50) for index in range(50)]


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, *SIZES[index]), index + 1.0), index


def test_collates_images_and_other_values() -> None:
    images = [torch.randn(3, 4, 6), torch.randn(3, 5, 2)]
    x, sizes, labels, boxes = collate_images([(images[0], 7, {"a": 1.0}), (images[1], 8, {"a": 2.0})])
    assert x.shape == (2, 3, 5, 6)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert sizes == ((4, 6), (5, 2))
    assert labels.tolist() == [7, 8]
    assert boxes["a"].tolist() == [1, 2]
    for canvas, image, (height, width) in zip(x, images, sizes, strict=True):
        assert torch.equal(canvas[:, :height, :width], image)
        assert canvas.count_nonzero() == image.count_nonzero()
    only, same = collate_images(images)
    assert torch.equal(only, x)
    assert same == sizes
    assert collate_images([torch.zeros(1, 2, 2, dtype=torch.uint8)])[0].dtype == torch.uint8


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ValueError, "samples: expected images with the same number of channels, got none"),
        ([torch.zeros(3, 2, 2), torch.zeros(1, 2, 2)], ValueError, "number of channels, got [1, 3]"),
        ([torch.zeros(2, 2)], TypeError, "samples[0]: expected a tensor (C, H, W), or a tuple that begins with one,"),
        ([(1, torch.zeros(3, 2, 2))], TypeError, "got tuple"),
    ],
)
def test_rejects_samples_without_images(samples: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        collate_images(samples)


def test_sampler_groups_similar_sizes_and_changes_by_epoch() -> None:
    sampler, other = (SizeBatchSampler(SIZES, 8, seed=3) for _ in range(2))
    first, second = list(sampler), list(sampler)
    assert len(sampler) == len(first) == len(second) == 7
    assert sorted(index for batch in first for index in batch) == list(range(50))
    assert sorted(map(sorted, first)) != sorted(map(sorted, second))
    assert padding_fraction(epoch_batches(SIZES, 8, 0, 3, None), SIZES) < 0.2
    assert first == [[image.index for image in batch] for batch in epoch_batches(SIZES, 8, 0, 3, None)]
    other.epoch = 1
    assert list(other) == second
    limited = SizeBatchSampler(SIZES, 8, batch_pixels=10_000)
    batches = list(limited)
    assert len(limited) == len(batches)
    for batch in batches:
        heights, widths = zip(*(SIZES[index] for index in batch), strict=True)
        assert len(batch) * max(heights) * max(widths) <= 10_000


def test_logits_of_a_batch_of_the_loader_are_those_of_single_images() -> None:
    model = create_classifier(ClassifierConfig(("a", "b"), "test_resnet"), weights=None).eval()
    loader = mixed_size_loader(Images(), SIZES, 4, num_workers=0)
    x, sizes, indices = next(iter(loader))
    assert sizes == tuple(SIZES[index] for index in indices)
    with torch.inference_mode():
        single = torch.cat([model(Images()[index][0][None]) for index in indices.tolist()])
        torch.testing.assert_close(model(x, sizes), single, rtol=1e-4, atol=1e-4)
