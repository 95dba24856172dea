"""Names and selection of the splits of a data set."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sppnet.errors import did_you_mean, list_some

SPLITS = ("train", "val", "valid", "validation", "test")


def check_exists(root: Path) -> None:
    """Check that a data set exists.

    Raises:
        ValueError: it does not; the message suggests a similar name in the same folder.
    """
    if not root.exists():
        siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise ValueError(f"no data set at {root}: no such folder or file{did_you_mean(root.name, siblings)}")


def split_folders(root: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the split folders of a data set, training first; empty if it is not divided into splits.

    A data set divided into splits has a train or test folder, and no folders other than train, val, valid, validation
    and test, ignoring case.

    Raises:
        ValueError: the data set has both split folders and other folders.
    """
    names = {folder.name.lower(): folder.name for folder in list_folders(Path(root))}
    others = sorted(names.keys() - set(SPLITS))
    if "train" in names and others and names.keys() & set(SPLITS[1:]):
        raise ValueError(
            f"{root} contains split folders ({', '.join(sorted(names.keys() - set(others)))}) and other folders"
            f" ({list_some(others)}); pass the folder of one split, or move the other folders away"
        )
    if not {"train", "test"} & names.keys() or others:
        return ()
    return tuple(names[split] for split in SPLITS if split in names)


def find_split(root: str | os.PathLike[str], *wanted: str) -> str | None:
    """Return the folder of the first wanted split that exists, ignoring case; None if there is none."""
    present = {split.lower(): split for split in split_folders(root)}
    return next((present[name] for name in wanted if name in present), None)


def sort_splits(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names of splits: training first, test last, then other names; a year at the end is ignored."""
    order = {split: rank for rank, split in enumerate(SPLITS)}
    return tuple(sorted(names, key=lambda name: (order.get(name.lower().rstrip("0123456789"), len(order)), name)))


def default_split(
    root: str | os.PathLike[str], present: Sequence[str], wanted: str | None, *defaults: str
) -> str | None:
    """Return the wanted split, or else the first default that exists; None if there are no splits.

    Args:
        root: data set, for the error message.
        present: existing splits.
        wanted: split requested by the user, or None.
        defaults: default splits, in order of preference.

    Raises:
        ValueError: there are splits, but none is wanted and no default exists.
    """
    if wanted is not None or not present:
        return wanted
    default = next((name for name in defaults if name in present), None)
    if default is None:
        raise ValueError(f"split: expected one of {', '.join(present)} for {root}, got none")
    return default


def list_folders(root: Path) -> list[Path]:
    """Return the folders in a folder, without hidden ones, sorted; empty if `root` is not a folder."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
