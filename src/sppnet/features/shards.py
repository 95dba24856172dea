"""Self-describing files of box vectors, in the safetensors or Parquet format."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sppnet.errors import import_optional
from sppnet.io import remote
from sppnet.io.files import read_tensors, save_tensors

_HEAD_BYTES = 1 << 20  # holds the safetensors header unless a file has very many boxes


@dataclass(frozen=True)
class Shard:
    """Content of one file.

    Attributes:
        vectors: one row per box.
        boxes: xyxy edges in pixels of the image.
        image: index of each box's image in `images`.
        images: distinct image names.
        ids: box ids.
    """

    vectors: Float[Tensor, "k d"]
    boxes: Float[Tensor, "k 4"]
    image: Int[Tensor, " k"]
    images: tuple[str, ...]
    ids: tuple[str, ...]


def save_shard(shard: Shard, path: Path | str, metadata: dict[str, str]) -> None:
    """Write a shard atomically.

    Args:
        shard: content, on the CPU.
        path: path or URL that ends in .safetensors or .parquet.
        metadata: strings to store in the file, see :func:`read_metadata`.

    Raises:
        ModuleNotFoundError: .parquet needs pyarrow, which is not installed.
    """
    with remote.atomic_write(path) as file:
        if file.suffix == ".parquet":
            _save_parquet(shard, file, metadata)
        else:
            tensors = {"vectors": shard.vectors, "boxes": shard.boxes, "image": shard.image}
            lists = {"images": json.dumps(shard.images), "ids": json.dumps(shard.ids)}
            save_tensors(tensors, file, metadata | lists)


def read_metadata(path: Path | str) -> dict[str, str] | None:
    """Read the metadata of a file without its rows; return None if the file is missing or damaged.

    Raises:
        OSError: the store of a URL does not respond.
    """
    if isinstance(path, str):
        return _read_remote_metadata(path)
    if not path.is_file():
        return None
    if path.suffix == ".parquet":
        pyarrow, parquet = import_pyarrow()
        try:
            metadata = parquet.read_schema(path).metadata or {}
        except pyarrow.ArrowException:
            return None
        return {name.decode(): text.decode() for name, text in metadata.items()}
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return None


def _read_remote_metadata(url: str) -> dict[str, str] | None:
    try:
        if url.endswith(".parquet"):
            with remote.local_copy(url) as file:
                return read_metadata(file)
        head = remote.read_bytes(url, _HEAD_BYTES)
        end = 8 + int.from_bytes(head[:8], "little")
        header = head if end <= len(head) else remote.read_bytes(url, end)
        return dict(json.loads(header[8:end]).get("__metadata__", {}))
    except (FileNotFoundError, ValueError):
        return None


def read_shard(path: Path) -> Shard:
    """Read a file written by :func:`save_shard`.

    Raises:
        ValueError: the file has another format or is damaged.
        ModuleNotFoundError: .parquet needs pyarrow, which is not installed.
    """
    if path.suffix == ".parquet":
        return _read_parquet(path)
    tensors, metadata = read_tensors(path)
    images, ids = (tuple(json.loads(metadata[name])) for name in ("images", "ids"))
    return Shard(tensors["vectors"], tensors["boxes"], tensors["image"], images, ids)


def import_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and pyarrow.parquet.

    Raises:
        ModuleNotFoundError: pyarrow is not installed; the message names the extra that installs it.
    """
    return import_optional("pyarrow", "Parquet files"), import_optional("pyarrow.parquet", "Parquet files")


def _save_parquet(shard: Shard, path: Path, metadata: dict[str, str]) -> None:
    pyarrow, parquet = import_pyarrow()
    values = pyarrow.array(shard.vectors.numpy().reshape(-1))
    columns = {
        "image": pyarrow.array([shard.images[index] for index in shard.image.tolist()], pyarrow.string()),
        "id": pyarrow.array(shard.ids, pyarrow.string()),
        **dict(zip(("x1", "y1", "x2", "y2"), map(pyarrow.array, shard.boxes.numpy().T.copy()), strict=True)),
        "vector": pyarrow.FixedSizeListArray.from_arrays(values, shard.vectors.shape[1]),
    }
    table = pyarrow.table(columns).replace_schema_metadata(metadata)
    parquet.write_table(table, path, compression="zstd", use_dictionary=["image"], write_statistics=False)


def _read_parquet(path: Path) -> Shard:
    pyarrow, parquet = import_pyarrow()
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    names = table["image"].to_pylist()
    indices = {name: index for index, name in enumerate(dict.fromkeys(names))}
    vectors = table["vector"].combine_chunks()
    edges = [table[name].to_numpy() for name in ("x1", "y1", "x2", "y2")]
    return Shard(
        torch.from_numpy(np.array(vectors.flatten())).reshape(len(names), vectors.type.list_size),
        torch.from_numpy(np.stack(edges, axis=1)),
        torch.tensor([indices[name] for name in names], dtype=torch.long),
        tuple(indices),
        tuple(table["id"].to_pylist()),
    )
