from pathlib import Path

import pytest

from sppnet.data.items import Problems


def test_errors_are_raised_and_the_others_are_listed() -> None:
    problems = Problems()
    for number in range(12):
        problems.report(Path("a.xml"), "box-outside", f"object {number}: expected x")
    problems.report(Path("b.jpg"), "no-mask", "skipped")
    problems.raise_errors()
    lines = problems.lines()
    assert lines[0] == "a.xml, object 0: expected x"
    assert lines[10:] == (
        "b.jpg: skipped",
        "2 more problems of the kind box-outside; `sppnet check` lists all",
    )
    for number in range(12):
        problems.report(Path("a.txt"), "missing", f"line {number}: no file")
    problems.report(Path("a.txt"), "bad-annotation", "cannot be read")
    with pytest.raises(ValueError, match=r"^a\.txt, line 0: no file; .*a\.txt, line 9: no file; and 3 more; `sppnet"):
        problems.raise_errors()
    assert problems.lines() == lines
    assert str(problems[-1]) == "a.txt cannot be read"


def test_names_are_printed_without_control_characters() -> None:
    problems = Problems()
    problems.report(Path("a\x1b[31m\n.jpg"), "missing", "object \udc80 \u202e")
    assert str(problems[0]) == r"a\x1b[31m\n.jpg, object \udc80 \u202e"
