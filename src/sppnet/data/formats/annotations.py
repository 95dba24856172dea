"""Names, files and boxes of annotations, handled equally by the readers of all formats."""

import math
import unicodedata
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from PIL.Image import Transpose

from sppnet.data.images import exif_transpose, open_image
from sppnet.data.items import FATAL, Box, Edges, Item, Problems
from sppnet.errors import ImageError, list_some

Size = tuple[int, int]

# Turns the edges of a box like the pixels of an image of (height, width) before the transposition.
_TURNS: dict[Transpose, Callable[[Edges, int, int], Edges]] = {
    Transpose.TRANSPOSE: lambda box, _h, _w: (box[1], box[0], box[3], box[2]),
    Transpose.ROTATE_270: lambda box, h, _w: (h - box[3], box[0], h - box[1], box[2]),
    Transpose.TRANSVERSE: lambda box, h, w: (h - box[3], w - box[2], h - box[1], w - box[0]),
    Transpose.ROTATE_90: lambda box, _h, w: (box[1], w - box[2], box[3], w - box[0]),
}


def format_numbers(values: Sequence[float]) -> str:
    """Format numbers for a message, such as (1, 2.5)."""
    return f"({', '.join(f'{value:g}' for value in values)})"


def shorten(value: object) -> str:
    """Format a value for a message, truncated to 100 characters."""
    try:
        text = repr(value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) < 100 else f"{text[:97]}..."


def cut(text: str) -> str:
    """Truncate a name for a message to 100 characters."""
    return text if len(text) < 100 else f"{text[:97]}..."


def spellings(name: str) -> Iterator[str]:
    """Yield a file name, and then its forms with slashes for backslashes and in the two Unicode normal forms."""
    yield name
    if name.isascii() and "\\" not in name:
        return
    slashed = name.replace("\\", "/")
    yield from dict.fromkeys((slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))))


def report_similar(names: Iterable[str], path: Path, problems: Problems) -> None:
    """Report class names that differ only in letter case, spaces, underscores, hyphens or Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups.setdefault("".join(filter(str.isalnum, plain)) or plain, []).append(name)
    for similar in groups.values():
        if len(similar) > 1:
            same = len({unicodedata.normalize("NFC", name) for name in similar}) < len(similar)
            listed = list_some(map(ascii if same else repr, similar))
            reason = f"expected clearly distinct class names, got {listed}; read as {len(similar)} classes"
            problems.report(path, "similar-classes", reason)


def report_absent(path: Path, names: Sequence[str], noun: str, problems: Problems) -> None:
    """Report stated classes without an example in the training split; `noun` is what an example is."""
    if names:
        these = "this class" if len(names) == 1 else "these classes"
        reason = f"no {noun} of {list_some(names)}; training on this split cannot learn {these}"
        problems.report(path, "empty-class", reason)


def check_images(items: Sequence[Item], path: Path, known: int, problems: Problems) -> None:
    """Report a split without images, unless a reason was reported after the first `known` problems."""
    if not items and not any(problem.kind in FATAL for problem in problems[known:]):
        problems.report(path, "bad-annotation", "expected at least one image, got none")


def report_repeated(names: Iterable[str], path: Path, problems: Problems) -> list[str]:
    """Return names without repetitions, which are reported."""
    unique: set[str] = set()
    repeated: dict[str, None] = {}
    kept = []
    for name in names:
        if name in unique:
            repeated[name] = None
        else:
            kept.append(name)
        unique.add(name)
    if repeated:
        problems.report(path, "bad-annotation", f"expected each image once, got repeated names: {list_some(repeated)}")
    return kept


def has_area(edges: Collection[float]) -> bool:
    """Return whether a box has an area in single precision, the format of boxes."""
    x1, y1, x2, y2 = array("f", edges)
    return not (x1 >= x2 and math.isfinite(x1)) and not (y1 >= y2 and math.isfinite(y1))


def fit_boxes(item: Item, size: Size, problems: Problems) -> list[tuple[Box, Sequence[float]]]:
    """Return the objects that overlap their image, with their edges clipped to it, and report the others.

    If the annotation states the stored size of an image that its EXIF orientation turns on its side, the boxes are
    turned with it. Square, mirrored and upside-down images cannot be recognized so; their boxes stay as they are.

    Args:
        item: image and its objects.
        size: (height, width) of the image with its EXIF orientation applied.
        problems: receives wrong stated sizes, turned boxes, and boxes that leave the image by more than a pixel.
    """
    height, width = size
    file, boxes = item.file or item.path, item.boxes
    turn = _turn(item, size)
    if turn is not None:
        boxes = tuple(box._replace(edges=turn(box.edges, width, height)) for box in boxes)
        problems.report(
            file,
            "exif-turned",
            f"the stated size {width} x {height} (height x width) is that of {item.path} before its EXIF orientation is"
            " applied; its boxes are turned upright with it",
        )
    elif item.stated not in (None, size):
        stated = f"{item.stated[0]} x {item.stated[1]}"
        problems.report(
            file,
            "stated-size",
            f"the stated size is {stated} (height x width), but {item.path} has {height} x {width} with its EXIF"
            " orientation applied; boxes are read as pixels of the latter",
        )
    fitted: list[tuple[Box, Sequence[float]]] = []
    for box in boxes:
        x1, y1, x2, y2 = box.edges
        clipped = array("f", (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)))
        empty = clipped[0] >= clipped[2] or clipped[1] >= clipped[3]
        if empty and not has_area(box.edges):  # turned to larger coordinates
            problems.report(file, "zero-area-box", f"{box.where}: box {format_numbers(box.edges)} has no area; dropped")
        elif empty or max(-x1, -y1, x2 - width, y2 - height) > 1:
            action = "dropped" if empty else f"clipped to {format_numbers(clipped)}"
            reason = (
                f"{box.where}: box with edges {format_numbers(box.edges)} extends beyond the image of"
                f" {height} x {width} (height x width); {action}"
            )
            problems.report(file, "box-outside", reason)
        if not empty:
            fitted.append((box, clipped))
    return fitted


def _turn(item: Item, size: Size) -> Callable[[Edges, int, int], Edges] | None:
    """Return the function that turns the boxes of an item; None if they refer to the upright image."""
    if item.stated != size[::-1] or size[0] == size[1]:
        return None
    try:
        with open_image(str(item.path)) as image:
            transposition = exif_transpose(image)
    except ImageError:
        return None
    return None if transposition is None else _TURNS.get(transposition)
