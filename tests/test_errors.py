"""Argument checks, suggestions in messages, and the error of an unusable image."""

import pickle
from types import SimpleNamespace

import pytest

from sppnet.errors import ImageError, check_choice, did_you_mean, list_some, printable, require_positive


def test_choose_lists_the_choices_and_suggests_the_closest() -> None:
    check_choice("rule", "max", ["max", "avg"])
    with pytest.raises(ValueError, match=r"^rule: expected one of max, avg, got 'mx'; did you mean 'max'\?$"):
        check_choice("rule", "mx", ["max", "avg"])
    with pytest.raises(ValueError, match=r"^rule: expected one of max, avg, got 'zzz'$"):
        check_choice("rule", "zzz", ["max", "avg"])


def test_image_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "file is empty", "empty-file")))
    assert (error.path, error.reason, error.kind, str(error)) == (
        "a.jpg",
        "file is empty",
        "empty-file",
        "a.jpg: file is empty",
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b\u00e4r 1.jpg", "b\u00e4r 1.jpg"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\0", r"a\nb\x00"),
        ("\udcff", r"\udcff"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
    ],
)
def test_printable_escapes_what_a_terminal_would_interpret(name: str, text: str) -> None:
    assert printable(name) == text
    assert str(ImageError(name, "no such file")) == f"{text}: no such file"


def test_suggest() -> None:
    assert did_you_mean("tset", ["train", "test"]) == "; did you mean test?"
    assert did_you_mean("zzz", ["train", "test"]) == ""


def test_list_some_counts_names_after_the_tenth() -> None:
    names = [str(number) for number in range(12)]
    assert list_some(names[:10]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert list_some(names) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_require_positive() -> None:
    options = SimpleNamespace(epochs=1, batch=0)
    require_positive(options, "epochs")
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        require_positive(options, "epochs", "batch")
