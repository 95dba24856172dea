"""Consoles: results go to standard output, progress and messages to standard error."""

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

# In distributed training only the first process prints.
_QUIET = any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))
console = Console(stderr=True, quiet=_QUIET)
results = Console(quiet=_QUIET)


def track(items: Iterable[T], description: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield the items while showing a progress bar with elapsed and remaining time.

    Args:
        items: items to process.
        description: label to the left of the bar.
        total: number of items, including those already `done`.
        done: number of items processed by an earlier run.
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
