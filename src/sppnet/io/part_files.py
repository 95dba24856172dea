"""Predictions for many images as shards of JSON lines, with an index of the settings that produced them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppnet.io import remote

INDEX = "index.json"
_FORMAT = 1


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
        content = self._content()
        present = remote.list_names(self.folder)
        if INDEX in present:
            existing = _read_index(self.folder)["settings"]
            differences = [
                f"{name} {existing.get(name)}, not {value}"
                for name, value in content["settings"].items()
                if existing.get(name) != value
            ]
            if differences:
                raise ValueError(
                    f"out: {self.folder} contains predictions of another job: {'; '.join(differences)};"
                    " choose another folder"
                )
        elif any(self.file(number) in present for number in range(len(self))):
            raise ValueError(
                f"out: {self.folder} contains files such as {self.file(0)} but no {INDEX}; choose another folder"
            )
        missing = [number for number in range(len(self)) if self.file(number) not in present]
        if missing or INDEX not in present:
            remote.make_folder(self.folder)
            self._write_index(content)
        return missing

    def close(self, failures: Sequence[tuple[str, str]]) -> None:
        """Write the final index, with (name, reason) of each failed image, and delete leftover temporary files."""
        content = self._content()
        content["complete"] = True
        content["shards"] = [
            {"file": self.file(number), "images": len(self.images(number))} for number in range(len(self))
        ]
        content["failures"] = [{"source": name, "reason": reason} for name, reason in failures]
        self._write_index(content)
        remote.remove_temporary_files(self.folder)

    def lines(self, number: int) -> list[str]:
        """Return the lines of a shard, one per image, in order."""
        text = remote.read_bytes(remote.join(self.folder, self.file(number))).decode()
        return text.splitlines()

    def _content(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(str(remote.resolve(name)).encode(errors="surrogateescape") + b"\n")
        settings = self.settings | {"images": digest.hexdigest()[:16], "count": len(self.names), "shard": self.size}
        return {
            "format": _FORMAT,
            "complete": False,
            "settings": json.loads(json.dumps(settings)),
            "shards": [],
            "failures": [],
        }

    def _write_index(self, content: dict[str, Any]) -> None:
        remote.write_text(json.dumps(content, indent=1, ensure_ascii=True) + "\n", remote.join(self.folder, INDEX))


def failure_line(name: str, reason: str) -> str:
    """Return the JSON line for an image that could not be read."""
    return json.dumps({"source": name, "failure": reason})


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
    root = remote.resolve(str(folder))
    index = _read_index(root)
    if not index["complete"]:
        raise ValueError(f"folder: the predictions in {root} are incomplete; run the same command again to resume")
    return _read_files([remote.join(root, shard["file"]) for shard in index["shards"]])


def _read_files(files: Sequence[Path | str]) -> Iterator[dict[str, Any]]:
    for file in files:
        for line in remote.read_bytes(file).decode().splitlines():
            yield json.loads(line)


def _read_index(folder: Path | str) -> dict[str, Any]:
    file = remote.join(folder, INDEX)
    try:
        content = json.loads(remote.read_bytes(file))
    except FileNotFoundError as error:
        raise ValueError(
            f"folder: expected output of `sppnet predict --engine ray`, got {folder}, which has no {INDEX}"
        ) from error
    except ValueError as error:
        raise ValueError(f"folder: {file} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or "settings" not in content:
        raise ValueError(f"folder: {file} is not an index that this version of sppnet can read")
    return content
