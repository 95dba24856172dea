import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sppnet.layers.resample import Grid, resample

FORMATS = (torch.contiguous_format, torch.channels_last)


def slow_resample(maps: torch.Tensor, source: Grid, size: tuple[int, int], target: Grid) -> np.ndarray:
    x = maps.numpy()
    out = np.zeros((*x.shape[:2], *size))
    for i in range(size[0]):
        for j in range(size[1]):
            row, column = (
                min(
                    max((cell * target.stride[a] + target.offset[a] - source.offset[a]) / source.stride[a], 0),
                    x.shape[a + 2] - 1,
                )
                for a, cell in enumerate((i, j))
            )
            top, left = int(row), int(column)
            bottom, right = min(top + 1, x.shape[2] - 1), min(left + 1, x.shape[3] - 1)
            a, b = row - top, column - left
            out[:, :, i, j] = (1 - a) * ((1 - b) * x[:, :, top, left] + b * x[:, :, top, right]) + a * (
                (1 - b) * x[:, :, bottom, left] + b * x[:, :, bottom, right]
            )
    return out


@pytest.mark.parametrize("memory_format", FORMATS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_resample_equals_a_plain_implementation(memory_format: torch.memory_format, data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.integers(low, high)), data.draw(st.integers(low, high))

    offset = st.sampled_from([-2.0, 0.0, 0.5, 7.5, 15.0])
    x = torch.randn(2, data.draw(st.integers(1, 3)), *pair(1, 6)).contiguous(memory_format=memory_format)
    source = Grid(pair(1, 16), (data.draw(offset), data.draw(offset)))
    size, target = pair(1, 20), Grid(pair(1, 8), (data.draw(offset), data.draw(offset)))
    expected = torch.from_numpy(slow_resample(x, source, size, target)).float()
    torch.testing.assert_close(resample(x, source, size, target), expected, rtol=1e-5, atol=1e-5)


def test_cell_centers_keep_their_values() -> None:
    x = torch.randn(1, 3, 5, 7)
    pixels = resample(x, Grid((4, 8), (2.0, 1.0)), (21, 55))
    torch.testing.assert_close(pixels[:, :, 2::4, 1::8][:, :, :5, :7], x)


def test_tile_has_the_values_of_the_whole_image() -> None:
    x = torch.randn(1, 3, 8, 8)
    whole = resample(x, Grid((16, 16), (15.0, 15.0)), (128, 128))
    part = resample(x[:, :, 2:6, 2:6], Grid((16, 16), (15.0, 15.0)), (64, 64))
    torch.testing.assert_close(part[:, :, 15:48, 15:48], whole[:, :, 47:80, 47:80])


def test_equals_torch_interpolate_with_aligned_corners() -> None:
    x = torch.randn(2, 3, 5, 6)
    ours = resample(x, Grid((4, 4), (0.0, 0.0)), (17, 21))
    torch.testing.assert_close(ours, F.interpolate(x, size=(17, 21), mode="bilinear", align_corners=True))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradients_and_memory_format(memory_format: torch.memory_format) -> None:
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: resample(y, Grid((3, 2), (1.0, 0.5)), (9, 8)), x)
    assert resample(x, Grid((3, 2), (1.0, 0.5)), (9, 8)).is_contiguous(memory_format=memory_format)
