"""Safe decoding of images at their own size."""

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from torch import Tensor

from sppnet.data.headers import describe_bomb, describe_tiff, find_late_exif, refuse_tiff
from sppnet.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Tensor

MAX_PIXELS, MAX_SIDE = 178_956_970, 65_500  # the first is Pillow's default limit
_lock = Lock()  # Pillow cannot decode an image object in two threads

# Pillow registers these formats, but they are not supported here: EPS would run Ghostscript, WMF needs Windows, MPEG,
# BUFR, GRIB and HDF5 have no decoder, IM is deprecated. IPTC, ICO, CUR and ICNS contain files of other formats, whose
# sizes and pixels cannot be checked before decoding.
_REFUSED_FORMATS = {"BUFR", "CUR", "EPS", "GRIB", "HDF5", "ICNS", "ICO", "IM", "IPTC", "MPEG", "WMF"}

# Exceptions that Pillow's readers raise on damaged data. MemoryError is not one of them.
_DECODE_ERRORS = (
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
    Image.DecompressionBombWarning,  # if the caller turns warnings into errors
)

NO_HEIC = "HEIC, the format of many phone photos, is not supported; convert it to JPEG or PNG"
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
_SIDE_SWAPS = tuple(_ORIENTATIONS[number] for number in (5, 6, 7, 8))


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> Image.Image:
    """Decode an image to RGB at its own size, with its EXIF orientation applied.

    Alpha and transparent palette colors are composited over white. 16-bit gray (modes I;16 and I) is converted to
    8 bits as ``round(value / 257)``. Color profiles are not applied. Only the first frame of a multi-frame image is
    decoded. Unreadable EXIF data are ignored. The result has no metadata, so loading it again gives the same pixels.

    Both limits are checked on the header, before decoding, and so are decompression bombs (see `sppnet.data.headers`).

    Args:
        source: a path, the bytes of a file, a Pillow image (not modified), or a uint8 array of shape
            (height, width, 3) in RGB order or (height, width) in gray, or a tensor of shape (3, height, width) in RGB
            order or (1, height, width) in gray, uint8 or floating point in [0, 1].
        max_pixels: maximum number of pixels (height times width); at least 1.
        max_side: maximum length of either side, in pixels; at least 1.

    Raises:
        ImageError: the file is missing, empty, truncated, damaged, too large, a decompression bomb or not an image.
        ValueError: a limit is below 1.
    """
    for name, limit in (("max_pixels", max_pixels), ("max_side", max_side)):
        if limit < 1:
            raise ValueError(f"{name}: expected at least 1, got {limit}")
    if isinstance(source, Tensor):
        source = _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _decode(_from_array(source), "<array>", max_pixels, max_side)
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "")) or "<image>"
        with _lock:
            return _decode(source, name, max_pixels, max_side)
    if isinstance(source, bytes):
        return _decode(_open(io.BytesIO(source), "<bytes>"), "<bytes>", max_pixels, max_side, len(source))
    path = os.fspath(source)
    with open_image(path) as image:
        return _decode(image, path, max_pixels, max_side, Path(path).stat().st_size)


def list_sources(images: ImageSource | Iterable[ImageSource]) -> list[ImageSource]:
    """Return a single image or several images as a list; arrays and tensors are single images."""
    single = isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor)
    return [images] if single else list(images)  # type: ignore[list-item,arg-type]


def source_name(source: ImageSource, index: int) -> str:
    """Return the path of an image, or a name made from its position in the list of images."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "filename", "")) or f"image {index}"


@contextmanager
def open_image(path: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image file: yields an image whose header is read but whose pixels are not decoded.

    Raises:
        ImageError: the file is missing, empty or not an image.
    """
    try:
        if not Path(path).exists():
            raise ImageError(path, "no such file", "missing")
        if not Path(path).is_file():  # opening a pipe would block
            raise ImageError(path, "a folder, not a file" if Path(path).is_dir() else "not a regular file")
        with Path(path).open("rb") as file:
            yield _open(file, path)
    except OSError as error:
        kind = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise ImageError(path, f"cannot be read: {error.strerror or error}", kind) from error


def image_size(source: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    """Return the (height, width) of the result of `load_image`, from the header of a file or its bytes.

    Raises:
        ImageError: the file is missing, empty or not an image. Damaged pixels are not detected.
    """
    if isinstance(source, bytes):
        return _upright_size(_open(io.BytesIO(source), "<bytes>"))
    with open_image(os.fspath(source)) as image:
        return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return (image.width, image.height) if exif_transpose(image) in _SIDE_SWAPS else (image.height, image.width)


def to_tensor(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "3 h w"]:
    """Convert an RGB image to a normalized float32 tensor, ``(pixel / 255 - mean) / std``.

    Args:
        image: an RGB image, as returned by `load_image`.
        mean: channel means in RGB order, on the scale 0 to 1.
        std: channel standard deviations in RGB order, on the scale 0 to 1; above 0.

    Raises:
        ValueError: the image is not RGB, ``mean`` or ``std`` does not have three values, or a ``std`` is not above 0.
    """
    if image.mode != "RGB":
        raise ValueError(f"image: expected mode RGB, as returned by load_image, got mode {image.mode}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(f"{name}: expected 3 values, for R, G and B, got {len(values)}")
    if min(std) <= 0:
        raise ValueError(f"std: expected values above 0, got {list(std)}")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return (pixels.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def image_extensions() -> frozenset[str]:
    """Return the file extensions that `load_image` supports, in lower case, with the dot."""
    formats = {*_formats(), "MPO"}  # MPO is read by the JPEG reader
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def _formats() -> list[str]:
    """Return the formats to try, those recognized by their first bytes before the others."""
    Image.init()
    names = [name for name in Image.ID if name in Image.OPEN and name not in _REFUSED_FORMATS]
    return sorted(names, key=lambda name: Image.OPEN[name][1] is None)


def _open(file: io.BytesIO | io.BufferedReader, path: str) -> ImageFile.ImageFile:
    """Read the header, without `Image.open`, which applies a process-wide size limit and warns about it."""
    head = file.read(16)
    if not head:
        raise ImageError(path, "file is empty", "empty-file")
    failure: ImageError | None = None
    for name in _formats():
        reader, accept = Image.OPEN[name]
        accepted: bool | str = False
        try:
            accepted = accept(head) if accept else True
            if isinstance(accepted, str):  # format recognized, but this build of Pillow does not support it
                failure = failure or ImageError(path, accepted)
            elif accepted:
                if name == "TIFF" and (refusal := refuse_tiff(file)):
                    failure = ImageError(path, *refusal)
                    break
                file.seek(0)
                return reader(file, "")  # given the file name, Pillow would open the file again
        except _DECODE_ERRORS as error:
            if accept and accepted:
                content = describe_tiff(file) if name == "TIFF" else None
                default = _describe(path, error, f"its {name} header cannot be read")
                failure = failure or (ImageError(path, content) if content else default)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        failure = ImageError(path, NO_HEIC)
    raise failure or ImageError(path, f"not an image: the file begins with {_quote(head)}", "not-an-image")


def decode_pixels(
    image: Image.Image,
    path: str,
    *,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
    file_bytes: int | None = None,
) -> None:
    """Decode an opened image in place, in its stored mode and orientation.

    Args:
        image: an image from `open_image`.
        path: file name for error messages.
        max_pixels: as for `load_image`.
        max_side: as for `load_image`.
        file_bytes: size of the file, to detect decompression bombs; None for masks, which may be uniform.

    Raises:
        ImageError: the file is truncated, damaged, too large or a decompression bomb.
    """
    width, height = image.size
    size = f"{height} x {width} (height x width)"
    if height * width > max_pixels:
        raise ImageError(path, f"too many pixels: {size}, more than max_pixels={max_pixels}", "too-many-pixels")
    if max(height, width) > max_side:
        raise ImageError(path, f"side too long: {size}, more than max_side={max_side}", "too-many-pixels")
    if file_bytes and (reason := describe_bomb(image, file_bytes)):
        raise ImageError(path, reason, "bomb")
    with _decode_errors(path):
        image.load()  # some readers set the final mode only here
    if image.size != (width, height):
        reason = f"file is damaged: its header has {size}, its pixels {image.height} x {image.width}"
        raise ImageError(path, reason, "damaged")


def _decode(
    image: Image.Image, path: str, max_pixels: int, max_side: int, file_bytes: int | None = None
) -> Image.Image:
    decode_pixels(image, path, max_pixels=max_pixels, max_side=max_side, file_bytes=file_bytes)
    with _decode_errors(path):
        rgb = _to_rgb(image, path)
    rgb.info.clear()
    turn = exif_transpose(image)
    return rgb if turn is None else rgb.transpose(turn)


@contextmanager
def _decode_errors(path: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except _DECODE_ERRORS as error:
        raise _describe(path, error, "its pixels cannot be decoded") from error


def exif_transpose(image: Image.Image) -> Image.Transpose | None:
    """Return the transpose that turns the stored pixels upright; None if not needed or the EXIF data are unreadable."""
    if isinstance(image, ImageFile.ImageFile) and image.format == "TIFF":
        return None  # Pillow applies the orientation of TIFF files itself, to their header size as well
    try:
        find_late_exif(image)
        # The method of the base class: that of PNG files decodes the pixels to find EXIF data after them.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:
        return None
    return _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image.Image, path: str) -> Image.Image:
    """Return a new RGB image; `image` is not modified."""
    if image.mode == "F":
        raise ImageError(path, "mode F (floating-point gray) has no fixed range; save it as 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_gray16(image, path)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_gray16(image: Image.Image, path: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise ImageError(path, f"mode {image.mode} with values {low} to {high}, outside the 16-bit range 0 to 65535")
    gray = (values + 128) // 257
    if "transparency" in image.info:  # a PNG may declare one gray value transparent
        gray[values == image.info["transparency"]] = 255
    return Image.fromarray(gray.astype(np.uint8)).convert("RGB")


def _from_tensor(tensor: Tensor) -> NDArray[Any]:
    """Return the uint8 pixels of a tensor, (height, width, 3) or (height, width)."""
    pixels = tensor.detach().cpu()
    legal_dtype = pixels.dtype == torch.uint8 or pixels.is_floating_point()
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not legal_dtype:
        raise ImageError(
            "<tensor>",
            "expected uint8 or floating-point pixels of shape (3, height, width) or (1, height, width),"
            f" got {tensor.dtype} of shape {tuple(tensor.shape)}",
        )
    if pixels.is_floating_point():
        if not (pixels >= 0).logical_and(pixels <= 1).all():
            raise ImageError(
                "<tensor>", f"expected values in [0, 1], got {float(pixels.min()):g} to {float(pixels.max()):g}"
            )
        pixels = (pixels * 255).round().byte()
    return pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy()


def _from_array(array: NDArray[Any]) -> Image.Image:
    gray_or_rgb = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not gray_or_rgb or array.size == 0:
        raise ImageError(
            "<array>",
            "expected uint8 pixels of shape (height, width, 3) or (height, width), each >= 1,"
            f" got {array.dtype} of shape {array.shape}",
        )
    return Image.fromarray(array)


def _describe(path: str, error: BaseException, default: str) -> ImageError:
    text = str(error)
    if isinstance(error, EOFError) or "truncated" in text.lower() or "not large enough" in text:
        return ImageError(path, "file is truncated", "truncated")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError(path, f"too many pixels: {text}", "too-many-pixels")
    return ImageError(path, f"file is damaged: {default}" + (f" ({text})" if text else ""), "damaged")


def _quote(head: bytes) -> str:
    text = head.decode("latin-1").strip()
    if text and text.isascii() and text.isprintable():
        return repr(text.split()[0])
    return f"the bytes {head[:8].hex(' ')}"
