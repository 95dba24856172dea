"""Names and selection of the splits of a data set."""

import logging
import os
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from sppnet.errors import did_you_mean, list_some

_logger = logging.getLogger(__name__)

# Names of the splits of public data sets, by role; upper and lower case and a year at the end make no difference.
ROLES = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
_ROLES = {name: role for role, names in ROLES.items() for name in names}
# Files and folders that operating systems and storage devices leave in data sets.
_SYSTEM_NAMES = {
    "__macosx",
    "@eadir",
    "thumbs.db",
    "desktop.ini",
    "lost+found",
    "$recycle.bin",
    "system volume information",
}
_HELD_OUT = 10  # training images for each one that is held out for validation


@runtime_checkable
class _Sample(Protocol):
    @property
    def path(self) -> Path: ...


S = TypeVar("S", bound=_Sample)


def role_of(name: str) -> str | None:
    """Return the role of a split (``train``, ``val`` or ``test``) by its name; None if it is no name of a split."""
    return _ROLES.get(_plain(name))


def _plain(name: str) -> str:
    return name.lower().rstrip("0123456789")


def is_system_file(name: str) -> bool:
    """Return whether a file or folder is no part of a data set: a hidden one, or one made by an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


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

    All folders of a data set divided into splits have names of splits.

    Raises:
        ValueError: the data set has both split folders and other folders, or two folders of the same role.
    """
    roles = {folder.name: role_of(folder.name) for folder in list_folders(Path(root))}
    splits, others = sort_splits(name for name, role in roles.items() if role), [n for n, r in roles.items() if not r]
    if "train" in roles.values() and len(splits) > 1 and others:
        raise ValueError(
            f"{root} contains split folders ({', '.join(splits)}) and other folders ({list_some(others)}); pass the"
            " folder of one split, or move the other folders away"
        )
    if others:
        return ()
    for role, names in ROLES.items():
        same = [name for name in splits if roles[name] == role]
        if len(same) > 1:
            raise ValueError(f"{root}: expected one folder named {', '.join(names)}, got {', '.join(same)}")
    return splits


def first_split(present: Iterable[str], *wanted: str) -> str | None:
    """Return the first present split with a wanted name, or else with its role, in the order of `wanted`."""
    names = sort_splits(present)
    for split in wanted:
        if split in names:
            return split
        if role := role_of(split):
            match = next((name for name in names if role_of(name) == role), None)
            if match is not None:
                return match
    return None


def sort_splits(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names of splits: training first, then validation, test, and other names."""

    def key(name: str) -> tuple[int, int, str]:
        role = role_of(name)
        return (
            (len(ROLES), 0, name) if role is None else (list(ROLES).index(role), ROLES[role].index(_plain(name)), name)
        )

    return tuple(sorted(names, key=key))


def default_split(
    root: str | os.PathLike[str], present: Sequence[str], wanted: str | None, *defaults: str
) -> str | None:
    """Return the wanted split, or else the first default that exists; None if there are no splits.

    Args:
        root: data set, for the error message.
        present: existing splits.
        wanted: split requested by the user, by its name or, if only one split has it, by its role; or None.
        defaults: default splits, in order of preference; a split with another name of the same role will do.

    Raises:
        ValueError: there are splits, but none is wanted and no default exists.
    """
    if wanted is not None:
        same = [name for name in present if role_of(name) == wanted.lower()]
        return same[0] if wanted not in present and len(same) == 1 else wanted
    if not present:
        return None
    default = first_split(present, *defaults)
    if default is None and "train" in defaults:
        got = f"only {', '.join(present)}; name the split to train on with --split"
        raise ValueError(f"split: expected a training split in {root}, got {got}")
    if default is None:
        raise ValueError(f"split: expected one of {', '.join(present)} for {root}, got none")
    return default


def hold_out(
    samples: Sequence[S],
    seed: int,
    label: Callable[[S], int] = lambda _: 0,
    usable: Callable[[Sequence[S]], bool] = bool,
) -> tuple[tuple[S, ...], tuple[S, ...]]:
    """Divide the images of a data set without a validation split, and log how.

    The choice depends on the paths and the seed, and not on the order of the images. Equal paths stay together.

    Args:
        samples: images of the training split.
        seed: random seed.
        label: returns the class of an image; a tenth of each class, rounded down, is for validation.
        usable: returns whether a part can serve its purpose.

    Returns:
        Images for training and for validation, in the order of `samples`; none for validation if there are too few,
        or a part would not be usable.
    """
    paths = [os.path.abspath(sample.path) for sample in samples]  # noqa: PTH100
    groups: dict[int, set[str]] = {}
    for sample, path in zip(samples, paths, strict=True):
        groups.setdefault(label(sample), set()).add(path)
    generator = random.Random(seed)  # noqa: S311
    chosen: set[str] = set()
    for _, group in sorted(groups.items()):
        chosen.update(generator.sample(sorted(group), len(group) // _HELD_OUT))
    pairs = list(zip(samples, paths, strict=True))
    training = tuple(sample for sample, path in pairs if path not in chosen)
    validation = tuple(sample for sample, path in pairs if path in chosen)
    if not (usable(training) and usable(validation)):
        _logger.info("no validation: there is no validation split, and there are too few images to choose some")
        return tuple(samples), ()
    _logger.info(
        f"no validation split: validating on {len(validation)} of {len(samples)} images, chosen with seed {seed}; use"
        " --val none to train on all images"
    )
    return training, validation


def list_folders(root: Path) -> list[Path]:
    """Return the folders in a folder, without system files, sorted; empty if `root` is not a folder."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_system_file(path.name))
