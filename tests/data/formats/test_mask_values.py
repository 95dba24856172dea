"""Ids and colors of mask files."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.formats.mask_values import decode_mask, format_packed, read_raw


def save_tiff(path: Path, ids: list[int], bits: int, white_is_0: bool) -> Path:
    """Write a gray TIFF of one row with these stored values."""
    if bits == 1:
        data = np.packbits(np.array(ids, np.uint8)).tobytes()
    elif bits == 4:
        pairs = np.array([*ids, 0][: len(ids) + len(ids) % 2], np.uint8).reshape(-1, 2)
        data = (pairs[:, 0] << 4 | pairs[:, 1]).astype(np.uint8).tobytes()
    else:
        data = np.array(ids, "<u2" if bits == 16 else np.uint8).tobytes()
    tags = {256: len(ids), 257: 1, 258: bits, 259: 1, 262: 1 - white_is_0, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    offset = 8 + len(data) + len(data) % 2
    header = b"II*\0" + struct.pack("<I", offset)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(header + data + bytes(len(data) % 2) + directory)
    return path


@pytest.mark.parametrize("white_is_0", [False, True])
@pytest.mark.parametrize(("bits", "ids"), [(1, [0, 1, 1]), (4, [0, 1, 2, 15]), (8, [0, 1, 2, 255]), (16, [0, 1, 700])])
def test_tiff_ids_are_the_stored_values(white_is_0: bool, bits: int, ids: list[int], tmp_path: Path) -> None:
    assert read_raw(save_tiff(tmp_path / "m.tif", ids, bits, white_is_0)).tolist() == [ids]


def test_tiff_colors_are_those_shown(tmp_path: Path) -> None:
    mask = decode_mask(save_tiff(tmp_path / "m.tif", [0, 1], 1, white_is_0=True))
    assert list(map(format_packed, mask.colors(np.array([0, 1])).tolist())) == ["(255, 255, 255)", "(0, 0, 0)"]
    mask = decode_mask(save_tiff(tmp_path / "m.tif", [0, 15], 4, white_is_0=False))
    assert mask.colors(np.array([0, 1, 15])).tolist() == [0, 0x111111, 0xFFFFFF]


def test_colors_of_palette_and_16_bit_masks(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    mask.putpalette([1, 2, 3, 4, 5, 6])
    mask.save(tmp_path / "p.png")
    palette = decode_mask(tmp_path / "p.png")
    assert palette.colors(np.array([0, 1, 2])).tolist() == [0x010203, 0x040506, -1]  # the palette has two colors
    assert not palette.is_gray(np.array([0, 1]))
    Image.fromarray(np.array([[0, 300, 65_535]], np.uint16)).save(tmp_path / "deep.png")
    assert decode_mask(tmp_path / "deep.png").colors(np.array([0, 300, 65_535])).tolist() == [0, -1, 0xFFFFFF]
    assert decode_mask(tmp_path / "deep.png").is_gray(np.array([0]))
