"""Argument checks and error types that all packages share."""

import difflib
from collections.abc import Iterable


def choose(argument: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        ValueError: naming the argument, the closest choice and all choices.
    """
    names = tuple(choices)
    if value not in names:
        close = difflib.get_close_matches(str(value), names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{argument}: expected one of {', '.join(names)}; got {value!r}{hint}")


class ImageError(ValueError):
    """An image that cannot be used: ``path`` says which one and ``reason`` why, in plain words."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in args, so that the error survives a worker process
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def suggest(name: str, known: Iterable[str]) -> str:
    """The close matches as the end of a message; empty without any."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def list_some(names: Iterable[str]) -> str:
    """Joins names for a message, not more than ten of them."""
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def require_positive(options: object, *names: str) -> None:
    """Refuse options of these names that are below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1; got {getattr(options, name)}")
