"""Readable forms of the problems found by a data set check."""

from sppnet.data.check.run import Check


def kinds_by_path(check: Check) -> list[tuple[str, str]]:
    """Return (path in the data set, kind) of each problem, sorted."""
    root = check.root if check.root.is_dir() else check.root.parent
    return sorted((problem.path.relative_to(root).as_posix(), problem.kind) for problem in check.problems)


def reasons(check: Check, kind: str) -> list[str]:
    return [problem.reason for problem in check.problems if problem.kind == kind]
