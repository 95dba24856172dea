import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sppnet.layers.aspp import ASPP
from sppnet.layers.ppm import PyramidPoolingModule
from sppnet.ops.levels import Reduce
from tests.helpers.batch_norm import randomize_batch_norms

sides = st.integers(1, 24)


def test_number_of_parameters_and_channels() -> None:
    ppm = PyramidPoolingModule(2048)
    assert sum(parameter.numel() for parameter in ppm.parameters()) == 4_198_400
    assert ppm.out_channels == 4096


@pytest.mark.parametrize("reduce", ["avg", "max"])
@given(rows=sides, columns=sides)
@settings(max_examples=30, deadline=None)
def test_ppm_equals_a_plain_implementation(reduce: Reduce, rows: int, columns: int) -> None:
    ppm = randomize_batch_norms(PyramidPoolingModule(8, (1, 2, 3, 6), reduce=reduce)).double()
    x = torch.randn(2, 8, rows, columns, dtype=torch.float64)
    pool = F.adaptive_avg_pool2d if reduce == "avg" else F.adaptive_max_pool2d
    expected = [x]
    for branch, level in zip(ppm.branches, (1, 2, 3, 6), strict=True):
        bins = branch(pool(x, level)).detach().numpy()
        ys, xs = (np.linspace(0, level - 1, side) if side > 1 else np.zeros(1) for side in (rows, columns))
        upsampled = np.zeros((2, 2, rows, columns))
        for i, row in enumerate(ys):
            for j, column in enumerate(xs):
                top, left = min(int(row), max(level - 2, 0)), min(int(column), max(level - 2, 0))
                bottom, right = min(top + 1, level - 1), min(left + 1, level - 1)
                a, b = row - top, column - left
                upsampled[:, :, i, j] = (1 - a) * ((1 - b) * bins[..., top, left] + b * bins[..., top, right]) + a * (
                    (1 - b) * bins[..., bottom, left] + b * bins[..., bottom, right]
                )
        expected.append(torch.from_numpy(upsampled))
    torch.testing.assert_close(ppm(x), torch.cat(expected, 1))


def test_one_bin_equals_the_image_level_branch_of_aspp() -> None:
    aspp, ppm = ASPP(8, 4, (1,)), PyramidPoolingModule(8, (1,), out_channels=4)
    assert aspp.image is not None
    ppm.branches[0].load_state_dict(randomize_batch_norms(aspp.image).state_dict())
    x = torch.randn(2, 8, 5, 7)
    image = aspp.image(aspp.context_of(x)).expand(-1, -1, 5, 7)
    torch.testing.assert_close(ppm.eval()(x), torch.cat([x, image], 1))


def test_trains_on_a_single_cell() -> None:
    ppm = PyramidPoolingModule(8)
    ppm(torch.randn(1, 8, 1, 1)).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in ppm.parameters())


@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_options() -> None:
    with pytest.raises(ValueError, match="out_channels: expected at least 1, got 0; default: in_channels // len"):
        PyramidPoolingModule(3)
    with pytest.raises(ValueError, match="reduce: expected one of max, avg, got 'sum'"):
        PyramidPoolingModule(8, reduce="sum")  # type: ignore[arg-type]
