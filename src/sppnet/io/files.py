"""JSON files read into dataclasses, and atomic writes of JSON and safetensors files."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sppnet.io.remote import atomic_write, write_text

T = TypeVar("T")


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file that holds the fields of a dataclass, and check their types.

    Args:
        path: file, UTF-8.
        kind: dataclass, or ``dict`` for any object; lists become tuples where the annotations say so.

    Raises:
        ValueError: the file is not JSON, a field is missing or unknown, or a value has another type.
        OSError: the file cannot be read.
    """
    return parse_json(path.read_bytes(), kind, str(path))


def parse_json(content: bytes | str, kind: type[T], name: str) -> T:
    """Like :func:`read_json`, for the content of a file; `name` names it in errors."""
    try:
        fields = json.loads(content)
        value = msgspec.convert(fields, kind)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name} is damaged or was not written by this program ({error}); restore it from a copy or write it again"
        ) from error
    known = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else fields.keys()
    if unknown := fields.keys() - known:
        raise ValueError(f"{name} has unknown fields: {', '.join(sorted(unknown))}; it is from another version")
    return value


def write_json(content: Any, path: Path) -> None:
    """Write JSON atomically."""
    write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", path)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Args:
        tensors: tensors by name.
        path: destination file.
        metadata: strings to store in the file header, by key.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as part:
        try:
            save_file(tensors, part, metadata)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        ValueError: the file is damaged or not a safetensors file.
        OSError: the file cannot be read.
    """
    path.open("rb").close()  # unlike safetensors, this names the file in its error
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), dict(metadata)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
