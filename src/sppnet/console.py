"""What people see: progress on standard error, results on standard output and nothing else there."""

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

# Of several processes of one training the first one speaks.
_QUIET = any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))
console = Console(stderr=True, quiet=_QUIET)
results = Console(quiet=_QUIET)


def track(items: Iterable[T], description: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield the items under a progress bar with the time that is left.

    Args:
        items: what is to be done.
        description: in front of the bar.
        total: number of items, those that are `done` already included.
        done: items that an earlier run has done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=console.is_terminal) as progress:
        task = progress.add_task(description, total=total, completed=done)
        for item in items:
            yield item
            progress.advance(task)
