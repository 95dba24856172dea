"""Output of the command line: results go to standard output, progress and messages to standard error."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# In distributed training only the first process prints.
_FIRST = not any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))
# Rich wraps at 80 columns if the output is no terminal, which breaks log lines and tables.
_WIDTH = {"stdout": None if sys.stdout.isatty() else 1000, "stderr": None if sys.stderr.isatty() else 1000}
console = Console(stderr=True, quiet=not _FIRST, width=_WIDTH["stderr"], emoji=False)
results = Console(quiet=not _FIRST, width=_WIDTH["stdout"], emoji=False)


def message(text: str) -> None:
    """Print a line on standard error, without markup or wrapping."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def line(text: str) -> None:
    """Print a line on standard output, without markup or wrapping."""
    results.print(text, highlight=False, soft_wrap=True, markup=False)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message(self.format(record))


@contextmanager
def reporting(quiet: bool = False, log_file: str | None = None) -> Iterator[None]:
    """Show progress bars and the package's log messages on standard error while the block runs.

    Args:
        quiet: show warnings and errors only.
        log_file: file to which all messages are appended, with time and level.

    Raises:
        OSError: the log file cannot be opened.
    """
    from sppnet.progress import on_progress

    logger = logging.getLogger("sppnet")
    handlers: list[logging.Handler] = [_ConsoleHandler(logging.WARNING if quiet else logging.INFO)]
    if log_file is not None:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(log_file, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file)
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    bars = None if quiet else _Bars()
    try:
        with on_progress(bars):
            yield
    finally:
        if bars is not None:
            bars.close()
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


class _Bars:
    """Progress callback that shows one bar with elapsed and remaining time for each description."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, description: str, done: int, total: int) -> None:
        if self._progress is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=console, transient=console.is_terminal)
            self._progress.start()
        if description not in self._tasks:
            self._tasks[description] = self._progress.add_task(description, total=total)
        self._progress.update(self._tasks[description], completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(description)) if console.is_terminal else self._tasks.pop(
                description
            )
            if not self._tasks:
                self.close()

    def close(self) -> None:
        """Remove the bars from a terminal, or leave the finished ones in a log."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}
