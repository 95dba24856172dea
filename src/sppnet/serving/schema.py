"""The form of answers, for the OpenAPI description."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from sppnet.serving.limits import CODES

Size = tuple[int, int]
Edges = tuple[float, float, float, float]


class Form(BaseModel):
    """No more and nothing else than is written here."""

    model_config = ConfigDict(extra="forbid")


class Problem(Form):
    """Why a request was refused: `code` for programs, `message` for people."""

    code: str
    message: str


class Status(Form):
    """State of the server."""

    status: str


class Bounds(Form):
    """What the server takes: bytes of a request, pixels of a photograph, boxes and requests at a time."""

    bytes: int
    pixels: int
    boxes: int
    queue: int


class ModelInfo(Form):
    """What the server answers with; what a task has not is empty or null.

    `length` is a region's vector's. `trained_sides` are the least and greatest shorter side of the training images, as
    the network saw them, in pixels.
    """

    task: Literal["classify", "detect", "segment", "regions"]
    name: str
    version: str
    engine: str
    backbone: str
    stride: Size
    classes: list[str] = []
    resize: str | None = None
    resizes: list[str] = []
    trained_sides: tuple[int, int] | None = None
    levels: list[Size] = []
    length: int | None = None
    head: str | None = None
    shown_score: float | None = None
    score_range: tuple[float, float] | None = None
    colours: list[tuple[int, int, int]] = []
    rates: list[int] = []
    limits: Bounds


class Label(Form):
    """A class and its probability."""

    label: str
    score: float


class Classes(Form):
    """The class of a photograph; sizes are (height, width) in pixels."""

    task: Literal["classify"]
    label: str
    score: float
    top: list[Label]
    size: Size
    network_size: Size
    resize: str


class FoundObject(Form):
    """An object; its box is xyxy, edges in pixels of the photograph as its EXIF orientation turns it."""

    label: str
    score: float
    box: Edges


class Objects(Form):
    """The objects of a photograph, best first, and how many windows were looked at."""

    task: Literal["detect"]
    size: Size
    windows: int
    objects: list[FoundObject]


class Share(Form):
    """A class and its share of the pixels."""

    label: str
    share: float


class Mask(Form):
    """The class of each pixel: a PNG in base64 whose values are indices of `classes` of `/v1/model`."""

    task: Literal["segment"]
    size: Size
    classes: list[Share]
    mask: str


class Vectors(Form):
    """One vector a box: levels in the order of `/v1/model`, inside a level channel, row, column."""

    task: Literal["regions"]
    size: Size
    length: int
    vectors: list[list[float]]


class GivenBin(Form):
    """A bin of the pyramid in pixels of the photograph, and what it gave to the logit."""

    box: Edges
    contribution: float


class GivenLevel(Form):
    """Bins row by row."""

    rows: int
    columns: int
    bins: list[GivenBin]


class GivenCells(Form):
    """What each cell of the feature map gave, row by row; x and y are the cells' edges in pixels of the photograph."""

    rows: int
    columns: int
    values: list[float]
    x: list[float]
    y: list[float]


class Contributions(Form):
    """What each bin gave: all contributions of the levels, and `rest`, add up to `logit`; so do those of the cells."""

    task: Literal["classify"]
    label: str
    score: float
    logit: float
    rest: float
    exact: bool
    size: Size
    network_size: Size
    seen: Edges
    levels: list[GivenLevel]
    cells: GivenCells


class BinBox(Form):
    """A bin in pixels of the photograph."""

    box: Edges


class BinLevel(Form):
    """Bins row by row."""

    rows: int
    columns: int
    bins: list[BinBox]


class Cells(Form):
    """The cells that a box pools, half-open (left, top, right, bottom), and its bins."""

    task: Literal["detect", "regions"]
    size: Size
    scale: int
    network_size: Size
    map_size: Size
    cells: tuple[int, int, int, int]
    levels: list[BinLevel]
    x: list[float]
    y: list[float]


class Rate(Form):
    """How much of an atrous branch lies on the map: of all taps, and of each of the nine, row by row."""

    rate: int
    share: float
    live: list[float]


class Taps(Form):
    """The live taps of each rate on a photograph's map."""

    task: Literal["segment"]
    size: Size
    map_size: Size
    rates: list[Rate]


def problems(*codes: str) -> dict[int | str, dict[str, object]]:
    """FastAPI's description of the answers with these codes, by status."""
    texts: dict[int, list[str]] = {}
    for code in codes:
        status, text = CODES[code]
        texts.setdefault(status, []).append(f"`{code}`: {text}")
    return {status: {"model": Problem, "description": "; ".join(lines)} for status, lines in texts.items()}
