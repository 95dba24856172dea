"""Gradients of the CPU kernels."""

from typing import get_args

import pytest
import torch

from sppnet.ops.levels import Reduce, Rule
from tests.helpers.kernel_cases import DTYPES, KINDS, LAYOUTS, PYRAMIDS, SHAPES, check_backward, make_map, make_windows


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_maxima_match_the_reference(kind: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    for shape in SHAPES:
        x = make_map(shape, kind, dtype, layout)
        for grids in PYRAMIDS:
            check_backward(x, None, grids, "adaptive", "max")
            check_backward(x, make_windows(shape, 12, inside=grids[0] == (4, 4)), grids, "adaptive", "max")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_means_match_the_reference(dtype: torch.dtype, layout: torch.memory_format) -> None:
    for shape in SHAPES[:4]:
        x = make_map(shape, "normal", dtype, layout)
        check_backward(x, None, PYRAMIDS[1], "adaptive", "avg")
        check_backward(x, make_windows(shape, 6, inside=False), PYRAMIDS[1], "adaptive", "avg")


@pytest.mark.parametrize("rule", ["sliding", "caffe"])
def test_gradients_of_other_rules_match_the_reference(rule: Rule) -> None:
    x = torch.randn(2, 33, 13, 12)
    for reduce in get_args(Reduce):
        check_backward(x, None, [(3, 3), (1, 1), (2, 4)], rule, reduce)
