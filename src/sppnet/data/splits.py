"""Names of the splits of a data set, and how a split is chosen."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sppnet.errors import list_some

SPLITS = ("train", "val", "valid", "validation", "test")


def splits(root: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the names of the splits of a folder, training first; none if it is not a folder of splits.

    A folder of splits has a train or a test folder, and no folder but train, val, valid, validation and
    test, in upper or lower case.
    """
    names = {folder.name.lower(): folder.name for folder in list_folders(Path(root))}
    others = sorted(names.keys() - set(SPLITS))
    if "train" in names and others and names.keys() & set(SPLITS[1:]):
        raise ValueError(
            f"{root} has splits ({', '.join(sorted(names.keys() - set(others)))}) and other folders beside them"
            f" ({list_some(others)}); name one split's folder itself, or move the others away"
        )
    if not {"train", "test"} & names.keys() or others:
        return ()
    return tuple(names[split] for split in SPLITS if split in names)


def find_split(root: str | os.PathLike[str], *wanted: str) -> str | None:
    """The folder name of the first wanted split that a folder of splits has, in upper or lower case."""
    present = {split.lower(): split for split in splits(root)}
    return next((present[name] for name in wanted if name in present), None)


def sort_splits(names: Iterable[str]) -> tuple[str, ...]:
    """Names of splits, training first and test last, with or without a year; others behind them."""
    order = {split: place for place, split in enumerate(SPLITS)}
    return tuple(sorted(names, key=lambda name: (order.get(name.lower().rstrip("0123456789"), len(order)), name)))


def usual_split(root: str | os.PathLike[str], present: Sequence[str], wanted: str | None, *usual: str) -> str | None:
    """The split that is meant: the wanted one, else the first usual one that there is; None where there are no splits.

    Args:
        root: for the message.
        present: the splits that there are.
        wanted: the split that was named, or None.
        usual: what the caller takes of itself, the best first.

    Raises:
        ValueError: there are splits, none is wanted, and none is usual.
    """
    if wanted is not None or not present:
        return wanted
    found = next((name for name in usual if name in present), None)
    if found is None:
        raise ValueError(f"split: {root} has {', '.join(present)}; name one of them")
    return found


def list_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
