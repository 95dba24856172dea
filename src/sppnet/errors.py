"""Error types, argument checks and message helpers shared by all packages."""

import difflib
from collections.abc import Iterable


def check_choice(argument: str, value: str, choices: Iterable[str]) -> None:
    """Check that a value is one of the legal choices.

    Raises:
        ValueError: illegal value; the message lists the choices and suggests the closest.
    """
    names = tuple(choices)
    if value not in names:
        close = difflib.get_close_matches(str(value), names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{argument}: expected one of {', '.join(names)}, got {value!r}{hint}")


class ImageError(ValueError):
    """An image that cannot be used: ``path`` names it, ``reason`` describes the problem."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in args, so that the error can be pickled by worker processes
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a "did you mean" suffix for a message, or an empty string if no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def list_some(names: Iterable[str]) -> str:
    """Join names for a message: at most ten, then how many more there are."""
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def require_positive(options: object, *names: str) -> None:
    """Check that the named attributes of an options object are at least 1.

    Raises:
        ValueError: an attribute is below 1.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")
