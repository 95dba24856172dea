"""Atomic writes of JSON, text and safetensors files, and reading of safetensors files."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


def write_json(content: Any, path: Path) -> None:
    """Write JSON atomically: if the process is killed, the file is either the old or the new one."""
    write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write text atomically, as `write_json` does."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None, *, shared: bool = False
) -> None:
    """Write a safetensors file atomically.

    Args:
        tensors: tensors by name.
        path: destination file.
        metadata: strings to store in the file header, by key.
        shared: give the temporary file a unique name, because other workers or runs may write the same `path`.
    """
    part = path.with_name(f"{path.name}{'.' + uuid.uuid4().hex if shared else ''}.part")
    save_file(tensors, part, metadata)
    umask = os.umask(0)
    os.umask(umask)
    part.chmod(0o666 & ~umask)  # safetensors creates files that only their owner can read
    part.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        ValueError: the file is damaged or not a safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), dict(metadata)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
