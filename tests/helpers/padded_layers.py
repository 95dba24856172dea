"""Functions and layers run on padded batches and compared with the same images processed one by one."""

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sppnet.backbones.padded.mode import PaddedBatch

Area = tuple[int, int]
Function = Callable[[Any], Any]
CHANNELS = 4
image_sizes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3)
few_examples = settings(max_examples=30, deadline=None)


class Layer(nn.Module):
    """A function as a network."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def canvas(sizes: list[Area], fill: float = 0.0, spare: int = 0) -> Tensor:
    """Return a padded batch of random images, `spare` cells larger than the largest image."""
    rows, columns = (max(area[axis] for area in sizes) + spare for axis in (0, 1))
    x = torch.full((len(sizes), CHANNELS, rows, columns), fill, dtype=torch.float64)
    for image, (height, width) in zip(x, sizes, strict=True):
        image[:, :height, :width] = torch.randn(CHANNELS, height, width)
    return x


def crop(x: Tensor, sizes: list[Area] | tuple[Area, ...]) -> list[Tensor]:
    """Return the valid part (1, C, height, width) of each image or map of a padded batch."""
    return [image[None, :, :height, :width] for image, (height, width) in zip(x, sizes, strict=True)]


def run(network: nn.Module, x: Tensor, sizes: list[Area], same: bool = False) -> tuple[Tensor, tuple[Area, ...]]:
    with PaddedBatch(network, same) as batch:
        out = network(batch.enter(x, sizes))
        return out, batch.areas(out)


def matches_single_images(network: nn.Module, sizes: list[Area], same: bool = False, spare: int = 0) -> bool:
    """Assert that values, areas and gradients of a padded batch equal those of the images one by one.

    The network runs between two convolutions, so that its input has nonzero padding and its output padding matters.
    Returns False if there is no reference: an image is too small, or a dilated maximum covers only padding.
    """
    whole = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), network, nn.LazyConv2d(2, 3, padding=1)).double()
    try:
        maps = [whole(image) for image in crop(canvas(sizes), sizes)]
    except (RuntimeError, ValueError):
        return False
    if not all(single.isfinite().all() for single in maps):
        return False
    x = canvas(sizes, math.nan, spare).requires_grad_()
    images = [image.detach().clone().requires_grad_() for image in crop(x, sizes)]
    maps = [whole(image) for image in images]
    expected = torch.autograd.grad(sum(single.sin().sum() for single in maps), [*images, *whole.parameters()])
    out, cells = run(whole, x, sizes, same)
    assert cells == tuple(tuple(single.shape[2:]) for single in maps)
    valid = crop(out, cells)
    torch.testing.assert_close(valid, maps, rtol=1e-9, atol=1e-9)
    gradients = torch.autograd.grad(torch.stack([part.sin().sum() for part in valid]).sum(), [x, *whole.parameters()])
    image_gradients = crop(gradients[0], sizes)
    torch.testing.assert_close([*image_gradients, *gradients[1:]], list(expected), rtol=1e-8, atol=1e-8)
    assert gradients[0].count_nonzero() == sum(gradient.count_nonzero() for gradient in image_gradients)
    with torch.no_grad():
        out, _ = run(whole, x.detach(), sizes, same)
        torch.testing.assert_close(crop(out, cells), maps)
    return True
