"""Index of results in several files: the settings that produced them, so that a killed run can be resumed."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sppnet.io import remote
from sppnet.io.files import parse_json

INDEX = "index.json"
_FORMAT = 1


@dataclass(kw_only=True)
class Index:
    """Content of index.json.

    Attributes:
        format: version of the format.
        complete: whether all files have been written.
        settings: everything that the results depend on, as JSON values.
        vector: length, channels and layout of box vectors; None for predictions.
        shards: name of each file, and its number of rows or images.
        failures: name of each image that could not be used, and the reason.
    """

    format: int = _FORMAT
    complete: bool = False
    settings: dict[str, Any]
    vector: dict[str, Any] | None = None
    shards: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = json.loads(json.dumps(self.settings))  # with lists instead of tuples, as in the file

    def is_in(self, folder: Path | str) -> bool:
        """Return whether a folder has an index.

        Raises:
            ValueError: the index has other settings; the message lists the differences.
        """
        try:
            stored = _read(folder).settings
        except FileNotFoundError:
            return False
        changes = [
            f"{name} {stored.get(name)}, not {new}" for name, new in self.settings.items() if stored.get(name) != new
        ]
        if changes:
            raise ValueError(
                f"out: {folder} contains results of other settings: {'; '.join(changes)}; choose another folder"
            )
        return True

    def write(self, folder: Path | str) -> None:
        """Write the index into a folder, which is created if it is missing."""
        remote.make_folder(folder)
        content = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        remote.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", remote.join(folder, INDEX))

    def finish(self, folder: Path | str, shards: Iterable[dict[str, Any]], failures: Iterable[dict[str, str]]) -> None:
        """Write the index of complete results, and delete temporary files that killed processes left."""
        self.complete, self.shards, self.failures = True, list(shards), list(failures)
        self.write(folder)
        remote.remove_temporary_files(folder)


def list_shards(folder: Path | str) -> list[Path | str]:
    """Return the files of complete results, in order.

    Args:
        folder: path or URL.

    Raises:
        ValueError: the folder has no valid index, or its results are incomplete.
        OSError: the index cannot be read.
    """
    folder = remote.resolve(str(folder))
    try:
        index = _read(folder)
    except FileNotFoundError as error:
        writers = "`sppnet features` or `sppnet predict --engine ray`"
        raise ValueError(f"folder: expected one written by {writers}, got {folder} without {INDEX}") from error
    if not index.complete:
        raise ValueError(f"folder: the results in {folder} are incomplete; run the same command again to resume")
    return [remote.join(folder, shard["file"]) for shard in index.shards]


def _read(folder: Path | str) -> Index:
    path = remote.join(folder, INDEX)
    index = parse_json(remote.read_bytes(path), Index, str(path))
    if index.format != _FORMAT:
        raise ValueError(
            f"{path}: expected format {_FORMAT}, got {index.format}; it was written by another version of sppnet"
        )
    return index
