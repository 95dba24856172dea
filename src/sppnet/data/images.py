"""Safe decoding of images at their own size, and listing of the image files of a folder."""

import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from torch import Tensor

from sppnet.data.headers import describe_bomb, describe_pieces, find_late_exif
from sppnet.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

MAX_PIXELS, MAX_SIDE = 178_956_970, 65_500  # the first is Pillow's own limit

# Formats that Pillow names but that are no pictures to read here: EPS would run Ghostscript, WMF needs
# Windows, MPEG, BUFR, GRIB and HDF5 are recognised without a decoder, IM is deprecated. IPTC, ICO, CUR and ICNS hold
# files of other formats, of whose sizes and pixels nothing is known before they are decoded.
_REFUSED_FORMATS = {"BUFR", "CUR", "EPS", "GRIB", "HDF5", "ICNS", "ICO", "IM", "IPTC", "MPEG", "WMF"}

# What Pillow's readers raise on damaged data, which is far more than OSError. MemoryError is not damage.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where the caller turns warnings into errors
)

NO_HEIC = "HEIC, in which phones save photographs, is not read; save it as JPEG or PNG"
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = tuple(_ORIENTATIONS[number] for number in (5, 6, 7, 8))


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> Image.Image:
    """Decodes an image to RGB at its own size, with its EXIF orientation applied.

    Alpha, and the transparent colour of a palette, is composed over white. 16-bit grey (modes I;16 and I)
    becomes 8-bit as ``round(value / 257)``. Colour profiles are not applied. Of several frames the first is
    taken. EXIF data that cannot be read counts as none. The result carries no metadata, so loading it again
    gives the same pixels.

    Args:
        source: a path, the bytes of a file, a Pillow image (left as it is), or a uint8 array of shape
            (height, width, 3) in RGB order or (height, width) in grey.
        max_pixels: most pixels (height times width) allowed; 1 or more.
        max_side: most pixels along either side; 1 or more. Both limits are checked on the header, before
            anything is decoded.

    A file that can only be a decompression bomb is refused on its header, too, see `sppnet.data.headers`.

    Raises:
        ImageError: if the file is missing, empty, truncated, damaged, too large, a decompression bomb or not an image.
        ValueError: if a limit is below 1.
    """
    for name, limit in (("max_pixels", max_pixels), ("max_side", max_side)):
        if limit < 1:
            raise ValueError(f"{name} must be 1 or more, got {limit}")
    if isinstance(source, np.ndarray):
        return _decode(_from_array(source), "<array>", max_pixels, max_side)
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "")) or "<image>"
        return _decode(source, name, max_pixels, max_side)
    if isinstance(source, bytes):
        return _decode(_open(io.BytesIO(source), "<bytes>"), "<bytes>", max_pixels, max_side, len(source))
    path = os.fspath(source)
    with open_image(path) as image:
        return _decode(image, path, max_pixels, max_side, Path(path).stat().st_size)


@contextmanager
def open_image(path: str) -> Iterator[ImageFile.ImageFile]:
    """The image of a file, its header read and nothing decoded.

    Raises:
        ImageError: if the file is missing, empty or not an image.
    """
    try:
        if not Path(path).exists():
            raise ImageError(path, "no such file")
        if not Path(path).is_file():  # opening a pipe would wait for ever
            raise ImageError(path, "a folder, not a file" if Path(path).is_dir() else "not a regular file")
        with Path(path).open("rb") as file:
            yield _open(file, path)
    except OSError as error:
        raise ImageError(path, f"cannot be read: {error.strerror or error}") from error


def image_size(source: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    """The (height, width) that `load_image` gives for a file or its bytes, read from the header alone.

    Raises:
        ImageError: if the file is missing, empty or not an image. That its pixels can be decoded is not known.
    """
    if isinstance(source, bytes):
        return _upright_size(_open(io.BytesIO(source), "<bytes>"))
    with open_image(os.fspath(source)) as image:
        return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return (image.width, image.height) if exif_turn(image) in _SIDEWAYS else (image.height, image.width)


def to_tensor(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "3 h w"]:
    """Turns an RGB image into a normalised float32 tensor, ``(pixel / 255 - mean) / std``.

    Args:
        image: an RGB image, as `load_image` gives it.
        mean: of each channel, in RGB order, on the scale 0 to 1.
        std: of each channel, in RGB order, on the scale 0 to 1; above 0.

    Raises:
        ValueError: if the image is not RGB, ``mean`` or ``std`` has not three values, or a ``std`` is not
            above 0.
    """
    if image.mode != "RGB":
        raise ValueError(f"image must be of mode RGB, as load_image gives it, got mode {image.mode}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(f"{name} must have 3 values, one for each of R, G and B, got {len(values)}")
    if min(std) <= 0:
        raise ValueError(f"std must be above 0 in every channel, got {list(std)}")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return (pixels.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def image_extensions() -> frozenset[str]:
    """Returns the file extensions that `load_image` can read, in lower case and with their dot."""
    known = Image.registered_extensions()
    formats = {*_formats(), "MPO"}  # MPO is read by the JPEG reader
    return frozenset(extension for extension, name in known.items() if name in formats)


def _formats() -> list[str]:
    """Returns the formats to try, those that can tell a file by its first bytes before those that cannot."""
    Image.init()
    names = [name for name in Image.ID if name in Image.OPEN and name not in _REFUSED_FORMATS]
    return sorted(names, key=lambda name: Image.OPEN[name][1] is None)


def _open(file: io.BytesIO | io.BufferedReader, path: str) -> ImageFile.ImageFile:
    """Reads the header.

    Not by `Image.open`: it measures by a limit of the whole process, and warns where it should leave the
    decision to the caller.
    """
    head = file.read(16)
    if not head:
        raise ImageError(path, "file is empty")
    reason = ""
    for name in _formats():
        reader, accept = Image.OPEN[name]
        accepted: bool | str = False
        try:
            accepted = accept(head) if accept else True
            if isinstance(accepted, str):  # the format is known, but this Pillow was built without it
                reason = reason or accepted
            elif accepted:
                if name == "TIFF" and (bomb := describe_pieces(file)):
                    reason = bomb
                    break
                file.seek(0)
                return reader(file, "")  # by its name Pillow would open it once more
        except _DAMAGE as error:
            if accept and accepted:
                reason = reason or _describe(error, f"its {name} header cannot be read")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        reason = NO_HEIC
    raise ImageError(path, reason or f"not an image: the file begins with {_quote(head)}")


def decode_pixels(
    image: Image.Image,
    path: str,
    *,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
    file_bytes: int | None = None,
) -> None:
    """Decodes an opened image as it is stored: in its own mode, and not turned.

    Args:
        image: as `open_image` gives it.
        path: for messages.
        max_pixels: as for `load_image`.
        max_side: as for `load_image`.
        file_bytes: of the file, to tell decompression bombs; None for masks, whose pixels may well be all alike.

    Raises:
        ImageError: if it is truncated, damaged, too large or a decompression bomb.
    """
    width, height = image.size
    size = f"{height} x {width} (height x width)"
    if height * width > max_pixels:
        raise ImageError(path, f"too many pixels: {size}, more than max_pixels={max_pixels}")
    if max(height, width) > max_side:
        raise ImageError(path, f"too long a side: {size}, more than max_side={max_side}")
    if file_bytes and (reason := describe_bomb(image, file_bytes)):
        raise ImageError(path, reason)
    with _damage(path):
        image.load()  # some readers settle the mode only now
    if image.size != (width, height):
        raise ImageError(path, f"file is damaged: its header has {size}, its pixels {image.height} x {image.width}")


def _decode(
    image: Image.Image, path: str, max_pixels: int, max_side: int, file_bytes: int | None = None
) -> Image.Image:
    decode_pixels(image, path, max_pixels=max_pixels, max_side=max_side, file_bytes=file_bytes)
    with _damage(path):
        rgb = _to_rgb(image, path)
    rgb.info.clear()
    turn = exif_turn(image)
    return rgb if turn is None else rgb.transpose(turn)


@contextmanager
def _damage(path: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except _DAMAGE as error:
        raise ImageError(path, _describe(error, "its pixels cannot be decoded")) from error


def exif_turn(image: Image.Image) -> Image.Transpose | None:
    """What turns the stored pixels of an image upright; None if nothing has to, or its EXIF data cannot be read."""
    if isinstance(image, ImageFile.ImageFile) and image.format == "TIFF":
        return None  # Pillow turns TIFF files by itself, and has their size as turned from the start
    try:
        find_late_exif(image)
        # Of the class, for that of PNG files decodes the pixels to look behind them.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return None
    return _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image.Image, path: str) -> Image.Image:
    """Returns a new RGB image; the one given is left as it is."""
    if image.mode == "F":
        raise ImageError(path, "mode F (floating-point grey) has no fixed range; save it as 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_grey16(image, path)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_grey16(image: Image.Image, path: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise ImageError(path, f"mode {image.mode} with values {low} to {high}; 16-bit grey is 0 to 65535")
    grey = (values + 128) // 257
    if "transparency" in image.info:  # the one grey value that a PNG may declare transparent
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    grey_or_rgb = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not grey_or_rgb or array.size == 0:
        raise ImageError(
            "<array>",
            "must be uint8 of shape (height, width, 3) or (height, width) with no side 0, "
            f"got {array.dtype} of shape {array.shape}",
        )
    return Image.fromarray(array)


def _describe(error: BaseException, otherwise: str) -> str:
    text = str(error)
    if isinstance(error, EOFError) or "truncated" in text.lower() or "not large enough" in text:
        return "file is truncated"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"too many pixels: {text}"
    return f"file is damaged: {otherwise} ({text})" if text else f"file is damaged: {otherwise}"


def _quote(head: bytes) -> str:
    text = head.decode("latin-1").strip()
    if text and text.isascii() and text.isprintable():
        return repr(text.split()[0])
    return f"the bytes {head[:8].hex(' ')}"
