"""Response models, for the OpenAPI description."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from sppnet.serving.limits import CODES

Size = tuple[int, int]
Edges = tuple[float, float, float, float]


class Form(BaseModel):
    """Base model without additional fields."""

    model_config = ConfigDict(extra="forbid")


class Problem(Form):
    """Error response: `code` for programs, `message` for people."""

    code: str
    message: str


class Status(Form):
    """Server state."""

    status: str


class Bounds(Form):
    """Request limits of the server, named like its options."""

    max_bytes: int
    max_image_pixels: int
    max_boxes: int
    queue: int
    upload_seconds: float


class ModelInfo(Form):
    """Description of the model; fields that do not apply to the task are empty or null.

    `length` is the vector length of a region. `trained_sides` are the minimum and maximum shorter side in pixels of the
    network inputs during training.
    """

    task: Literal["classify", "detect", "segment", "features"]
    name: str
    version: str
    runtime: str
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


class Result(Form):
    """Common part of all predictions: the file name, and the (height, width) in pixels after the EXIF rotation."""

    source: str
    size: Size


class Label(Form):
    """A class and its probability."""

    label: str
    score: float


class Classes(Result):
    """Predicted class of a photograph, and up to five classes, most probable first."""

    label: str
    score: float
    top: list[Label]
    network_size: Size


class FoundObject(Form):
    """Detected object; the box has xyxy edges in pixels of the photograph after its EXIF rotation."""

    label: str
    score: float
    box: Edges


class Objects(Result):
    """Detected objects by descending score."""

    objects: list[FoundObject]


class Share(Form):
    """A class and its share of the pixels."""

    label: str
    share: float


class Mask(Result):
    """Classes by descending share, and `mask`, a base64 PNG of indices into `classes` of `/v1/model`."""

    classes: list[Share]
    mask: str


class Vectors(Result):
    """One vector per box, ordered by level as in `/v1/model`, then channel, row and column."""

    boxes: list[Edges]
    vectors: list[list[float]]


class GivenBin(Form):
    """Pyramid bin in pixels of the photograph, and its contribution to the logit."""

    box: Edges
    contribution: float


class GivenLevel(Form):
    """Pyramid level with its bins in row-major order."""

    rows: int
    columns: int
    bins: list[GivenBin]


class GivenCells(Form):
    """Contributions of the map's cells in row-major order; x and y are the cell edges in pixels of the photograph."""

    rows: int
    columns: int
    values: list[float]
    x: list[float]
    y: list[float]


class Contributions(Form):
    """Contributions to a logit: all bins plus `rest` add up to `logit`, as do all cells plus `rest`."""

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
    """Pyramid bin in pixels of the photograph."""

    box: Edges


class BinLevel(Form):
    """Pyramid level with its bins in row-major order."""

    rows: int
    columns: int
    bins: list[BinBox]


class Cells(Form):
    """Feature map cells that a box pools, half-open (left, top, right, bottom), and its bins."""

    size: Size
    scale: int
    network_size: Size
    map_size: Size
    cells: tuple[int, int, int, int]
    levels: list[BinLevel]
    x: list[float]
    y: list[float]


class Rate(Form):
    """Share of live taps of an atrous rate: the mean, and that of each of the nine taps in row-major order."""

    rate: int
    share: float
    live: list[float]


class Taps(Form):
    """Live taps of each atrous rate on the photograph's feature map."""

    size: Size
    map_size: Size
    rates: list[Rate]


def problems(*codes: str) -> dict[int | str, dict[str, object]]:
    """Return FastAPI's response descriptions of these error codes, by status."""
    texts: dict[int, list[str]] = {}
    for code in codes:
        status, text = CODES[code]
        texts.setdefault(status, []).append(f"`{code}`: {text}")
    return {status: {"model": Problem, "description": "; ".join(lines)} for status, lines in texts.items()}
