"""Images as bytes of a file."""

import io
from typing import Any

from PIL import Image


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    """Return the bytes of an image file in a format of Pillow."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()
