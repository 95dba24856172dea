from pathlib import Path

import pytest

from sppnet.data.formats.annotations import (
    cut,
    format_numbers,
    has_area,
    report_repeated,
    report_similar,
    shorten,
    spellings,
)
from sppnet.data.items import Problem, Problems


def test_formats_numbers_without_trailing_zeros() -> None:
    assert format_numbers((1.0, 2.5, -3)) == "(1, 2.5, -3)"


def test_shortens_values_for_messages() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert shorten(nested) == "a deeply nested value"
    assert len(shorten("x" * 10_000)) == len(cut("x" * 10_000)) == 100
    assert (shorten([1, "a"]), cut("a")) == ("[1, 'a']", "a")


def test_spellings_of_file_names() -> None:
    assert list(spellings("images/a.jpg")) == ["images/a.jpg"]
    assert list(spellings("images\\a.jpg")) == ["images\\a.jpg", "images/a.jpg"]
    assert set(spellings("b\u00e4r")) == {"b\u00e4r", "ba\u0308r"}


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ((0, 0, 1, 1), True),
        ((50, 10, 50 + 1e-6, 15), False),
        ((0, 0, 1e-6, 5), True),
        ((1, 10, 5, 10), False),
        ((1e300, 0, 1.1e300, 5), True),  # outside of any image, but not empty
    ],
)
def test_area_in_single_precision(edges: tuple[float, float, float, float], expected: bool) -> None:
    assert has_area(edges) is expected


def test_reports_similar_and_repeated_names() -> None:
    problems, path = Problems(), Path("x")
    report_similar(["cat", "dog", "Cat", "hot dog", "hot_dog", "b\u00e4r", "ba\u0308r", "+", "-"], path, problems)
    assert [problem.kind for problem in problems] == ["similar-classes"] * 3
    assert "'cat', 'Cat'" in problems[0].reason
    assert r"'b\xe4r', 'ba\u0308r'" in problems[2].reason
    problems.clear()
    assert report_repeated(["b", "a", "b", "b"], path, problems) == ["b", "a"]
    assert problems == [Problem(path, "bad-annotation", "expected each image once, got repeated names: b")]
