"""Predictions for many images as files of JSON lines, with an index of the settings that produced them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppnet.io import remote
from sppnet.io.shards import INDEX, Index, list_shards


@dataclass(frozen=True)
class Shards:
    """A list of images cut into shards of equal length, with one file of predictions per shard.

    Attributes:
        folder: path or URL of the folder of the files.
        names: image names, in listing order.
        size: number of images per file, at least 1.
        settings: everything except the images that the predictions depend on, as JSON values.
    """

    folder: Path | str
    names: Sequence[str]
    size: int
    settings: dict[str, Any]

    def __len__(self) -> int:
        return -(-len(self.names) // self.size)

    def file(self, number: int) -> str:
        """Return the name of a shard file, such as ``part-00012.jsonl``."""
        return f"part-{number:05d}.jsonl"

    def images(self, number: int) -> list[str]:
        """Return the names of the images of a shard."""
        return list(self.names[number * self.size : (number + 1) * self.size])

    def open(self) -> list[int]:
        """Create the folder and its index if needed, and return the numbers of the missing files.

        Raises:
            ValueError: the folder contains the predictions of another job.
        """
        if self.size < 1:
            raise ValueError(f"shard: expected at least 1 image, got {self.size}")
        index, present = self._index(), remote.list_names(self.folder)
        missing = [number for number in range(len(self)) if self.file(number) not in present]
        resumed = index.is_in(self.folder)
        if not resumed and len(missing) < len(self):
            raise ValueError(
                f"out: {self.folder} contains files such as {self.file(0)} but no {INDEX}; choose another folder"
            )
        if missing or not resumed:
            index.write(self.folder)
        return missing

    def close(self, failures: Iterable[tuple[str, str]]) -> None:
        """Write the final index, with (name, reason) of each failed image, and delete leftover temporary files."""
        shards = [{"file": self.file(number), "images": len(self.images(number))} for number in range(len(self))]
        self._index().finish(self.folder, shards, [{"source": name, "reason": reason} for name, reason in failures])

    def lines(self, number: int) -> list[str]:
        """Return the lines of a shard, one per image, in order."""
        return remote.read_bytes(remote.join(self.folder, self.file(number))).decode().splitlines()

    def _index(self) -> Index:
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(str(remote.resolve(name)).encode(errors="surrogateescape") + b"\n")
        images = {"images": digest.hexdigest()[:16], "count": len(self.names), "shard": self.size}
        return Index(settings=self.settings | images)


def parse_failure(line: str) -> tuple[str, str] | None:
    """Return (name, reason) from the line of an image that could not be read, or None for a prediction."""
    if '"failure": ' not in line:
        return None
    content = json.loads(line)
    return (content["source"], content["failure"]) if "failure" in content else None


def read_predictions(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Iterate over the predictions written by ``sppnet predict --engine ray``, holding one file in memory at a time.

    Args:
        folder: path, or URL such as ``s3://bucket/answers``.

    Yields:
        For each image, in order, the object that ``sppnet predict --json`` prints; for an image that could not be
        read, ``source`` and ``failure`` (the reason).

    Raises:
        ValueError: the folder does not exist, or its predictions are incomplete.
        OSError: a file cannot be read.
    """
    return _read_files(list_shards(folder))


def _read_files(files: Sequence[Path | str]) -> Iterator[dict[str, Any]]:
    for file in files:
        for line in remote.read_bytes(file).decode().splitlines():
            yield json.loads(line)
