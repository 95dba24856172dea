"""Answers for many images as JSON lines in numbered files, with an index that says what they answer."""

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
class Parts:
    """A list of images cut into parts of equal length, and the folder that has a file of answers for each.

    Attributes:
        folder: where the files are, a path or a URL.
        names: of the images, as they were listed.
        size: images of a file, >= 1.
        settings: all that the answers depend on, the images apart, as JSON gives it back.
    """

    folder: Path | str
    names: Sequence[str]
    size: int
    settings: dict[str, Any]

    def __len__(self) -> int:
        return -(-len(self.names) // self.size)

    def file(self, number: int) -> str:
        """Name of a file, such as ``part-00012.jsonl``."""
        return f"part-{number:05d}.jsonl"

    def images(self, number: int) -> list[str]:
        """Names of the images of a file."""
        return list(self.names[number * self.size : (number + 1) * self.size])

    def open(self) -> list[int]:
        """Make the folder and its index if need be; the numbers of the files that are missing.

        Raises:
            ValueError: the folder has answers to something else.
        """
        if self.size < 1:
            raise ValueError(f"shard: expected at least 1 image; got {self.size}")
        content = self._content()
        present = remote.list_names(self.folder)
        if INDEX in present:
            found = _read_index(self.folder)["settings"]
            other = [
                f"{name} {found.get(name)}, not {value}"
                for name, value in content["settings"].items()
                if found.get(name) != value
            ]
            if other:
                raise ValueError(
                    f"out: {self.folder} has answers of another job: {'; '.join(other)}; take another folder"
                )
        elif any(self.file(number) in present for number in range(len(self))):
            raise ValueError(f"out: {self.folder} has {self.file(0)} or the like but no {INDEX}; take another folder")
        todo = [number for number in range(len(self)) if self.file(number) not in present]
        if todo or INDEX not in present:
            remote.make_folder(self.folder)
            self._write(content)
        return todo

    def close(self, failures: Sequence[tuple[str, str]]) -> None:
        """Write the index of the whole, and delete what killed workers left."""
        content = self._content()
        content["complete"] = True
        content["shards"] = [
            {"file": self.file(number), "images": len(self.images(number))} for number in range(len(self))
        ]
        content["failures"] = [{"source": name, "reason": reason} for name, reason in failures]
        self._write(content)
        remote.remove_parts(self.folder)

    def lines(self, number: int) -> list[str]:
        """The lines of a file; a line a image, in order."""
        text = remote.read_bytes(remote.join(self.folder, self.file(number))).decode()
        return text.splitlines()

    def _content(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(str(remote.place(name)).encode(errors="surrogateescape") + b"\n")
        settings = self.settings | {"images": digest.hexdigest()[:16], "count": len(self.names), "shard": self.size}
        return {
            "format": _FORMAT,
            "complete": False,
            "settings": json.loads(json.dumps(settings)),
            "shards": [],
            "failures": [],
        }

    def _write(self, content: dict[str, Any]) -> None:
        remote.write_text(json.dumps(content, indent=1, ensure_ascii=True) + "\n", remote.join(self.folder, INDEX))


def failure_line(name: str, reason: str) -> str:
    """The line of an image that could not be read."""
    return json.dumps({"source": name, "failure": reason})


def failure_of(line: str) -> tuple[str, str] | None:
    """Name and reason of an image that could not be read; None for an answer."""
    if '"failure": ' not in line:
        return None
    content = json.loads(line)
    return (content["source"], content["failure"]) if "failure" in content else None


def read_answers(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The answers that ``sppnet predict --engine ray`` wrote, image by image; memory holds one file.

    Args:
        folder: a path, or a URL such as ``s3://bucket/answers``.

    Yields:
        In the order of the images what ``sppnet predict --json`` prints of each; of one that could not be read
        ``source`` and ``failure``, which is the reason.

    Raises:
        ValueError: no such folder, or one whose answers are not complete.
        OSError: a file cannot be read.
    """
    where = remote.place(str(folder))
    index = _read_index(where)
    if not index["complete"]:
        raise ValueError(f"folder: the answers in {where} are not complete; the same command goes on with them")
    return _read_files([remote.join(where, shard["file"]) for shard in index["shards"]])


def _read_files(places: Sequence[Path | str]) -> Iterator[dict[str, Any]]:
    for where in places:
        for line in remote.read_bytes(where).decode().splitlines():
            yield json.loads(line)


def _read_index(folder: Path | str) -> dict[str, Any]:
    where = remote.join(folder, INDEX)
    try:
        content = json.loads(remote.read_bytes(where))
    except FileNotFoundError as error:
        raise ValueError(
            f"folder: expected one that `sppnet predict --engine ray` wrote; {folder} has no {INDEX}"
        ) from error
    except ValueError as error:
        raise ValueError(f"folder: {where} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or "settings" not in content:
        raise ValueError(f"folder: {where} is no index of answers that this version reads")
    return content
