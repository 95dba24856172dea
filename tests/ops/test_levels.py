"""Pyramid levels: parsing and number of bins."""

import pytest

from sppnet.ops.levels import Level, count_bins, parse_levels


def test_parses_levels_as_rows_and_columns() -> None:
    assert parse_levels((4, (2, 3), 1)) == ((4, 4), (2, 3), (1, 1))
    assert count_bins((6, 3, 2, 1)) == 50
    assert count_bins((4, (2, 3))) == 22


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [
        ((), ValueError, "at least one level"),
        ((2, 0), ValueError, r"levels\[1\]: expected at least 1 bin per side, got 0"),
        (((2, -1),), ValueError, "smallest level is 1"),
        ((1.5,), TypeError, "an integer or a pair"),
        ((True,), TypeError, "an integer or a pair"),
        (((1, 2, 3),), TypeError, "an integer or a pair"),
        (4, TypeError, r"a sequence such as \(4, 2, 1\), got 4"),
        ("421", TypeError, "a sequence such as"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_levels(levels: tuple[Level, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_levels(levels)
