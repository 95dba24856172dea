"""Evaluation reports as one HTML page without external resources or scripts, and as JSON and CSV files."""

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Int
from PIL import Image
from torch import Tensor

from sppnet.errors import printable
from sppnet.evaluation.calibration import ReliabilityBin
from sppnet.evaluation.confusion import most_confused
from sppnet.io.files import write_json
from sppnet.io.remote import atomic_write, write_text

MOST_CLASSES = 25  # of a whole confusion matrix on the page
TILES = 24  # most pictures of a gallery
RELIABILITY = (
    "Blue: share of correct predictions by score. Orange: mean score, which would be the top of the column with perfect"
    " calibration. Gray: number of predictions, on a logarithmic scale. The calibration error is the mean difference of"
    " orange and blue over all predictions."
)
_LISTED = 100  # most problems on the page
_PLOT = 220  # side of the plotting area of a chart, in units of its SVG

_STYLE = """
:root { color-scheme: light dark; --text: #1c2026; --muted: #5b6470; --line: #d9dde3; --page: #f6f7f9; --card: #fff;
  --accent: #0a6cb4; --soft: #0a6cb433; --bad: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ee; --muted: #a1aab6; --line: #363c46; --page: #13161a;
  --card: #1b1f25; --accent: #5db2f0; --soft: #5db2f040; --bad: #fb8a5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 76rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0 0 .25rem; font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; }
h2 { margin: 0 0 .5rem; font-size: 1.15rem; }
p { max-width: 48rem; margin: 0 0 .75rem; } .lead, .note, dt, figcaption, th { color: var(--muted); }
.note, figcaption, table { font-size: .875rem; }
section { margin-top: 1.25rem; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 1.25rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0 0; }
dl div { padding: .6rem .8rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
dt { font-size: .8rem; } dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.full { width: 100%; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  font-weight: 400; }
th:first-child, .text { text-align: left; } tbody th { color: var(--text); }
thead th { position: sticky; top: 0; background: var(--card); vertical-align: bottom; }
.tall { max-height: 32rem; overflow-y: auto; }
.bar { display: inline-block; width: 4.5rem; height: .5rem; margin-left: .5rem; border-radius: .25rem;
  background: var(--soft); } .bar i { display: block; height: 100%; border-radius: .25rem; background: var(--accent); }
.heat td { min-width: 2.1rem; padding: .2rem .3rem; border: 1px solid var(--card); text-align: center;
  background: color-mix(in srgb, var(--accent) var(--p), transparent); }
.heat td.strong { color: var(--page); font-weight: 600; } .heat th { padding: .2rem .4rem; border: 0; }
.heat tbody th { position: sticky; left: 0; background: var(--card); max-width: 10rem; overflow: hidden;
  text-overflow: ellipsis; }
.heat thead th + th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; overflow: hidden; }
.heat thead th + th { text-align: center; }
.charts, .gallery { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(44%, 10rem), 1fr)); }
.gallery.series { grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); }
figure { margin: 0; min-width: 0; } figcaption b { color: var(--text); font-weight: 600; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(45%, 7rem), 1fr)); gap: .25rem; }
img { display: block; width: 100%; height: auto; border-radius: .25rem; }
.gallery:not(.series) img { aspect-ratio: 1; object-fit: contain; background: var(--page); }
.legend span { display: inline-block; margin-right: 1rem; font-size: .875rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border: 1px solid var(--line); }
svg { display: block; width: 100%; max-width: 26rem; height: auto; } .charts svg { max-width: 14rem; }
.charts svg text { font-size: 17px; }
svg text { fill: var(--muted); font-size: 11px; } .grid { stroke: var(--line); fill: none; }
.curve { stroke: var(--accent); fill: none; stroke-width: 2.5; } .ideal { stroke: var(--muted); stroke-dasharray: 5 4; }
.column { fill: var(--accent); opacity: .55; } .score { fill: var(--bad); } .count { fill: var(--muted); opacity: .6; }
ul { margin: 0; padding-left: 1.2rem; font-size: .875rem; }
@media (max-width: 32rem) { .bar { display: none; } th, td { padding: .25rem .35rem; } }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style></head>
<body><header><h1>{title}</h1><p class="lead">{lead}</p></header>
<main>{parts}</main></body></html>
"""


class Bar(NamedTuple):
    """Cell of a table: a value from 0 to 1, shown in percent with a bar; None is shown as a dash."""

    value: float | None


Cell = str | int | Bar


class Tile(NamedTuple):
    """Entry of a gallery: pictures side by side, and a caption whose first line is bold."""

    pictures: tuple[Image.Image, ...]
    caption: tuple[str, ...]


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share; None is a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def page(title: str, lead: str, *parts: str) -> str:
    """Return a page from a title, a line that describes the evaluation, and the HTML of its parts."""
    return _PAGE.format(title=_text(title), lead=_text(lead), style=_STYLE, parts="\n".join(filter(None, parts)))


def section(title: str, *parts: str, note: str = "") -> str:
    """Return a titled card, with an explanation below the title; empty if all parts are empty."""
    if not any(parts):
        return ""
    text = f'<p class="note">{_text(note)}</p>' if note else ""
    return f"<section><h2>{_text(title)}</h2>{text}{''.join(parts)}</section>"


def side_by_side(*sections: str) -> str:
    """Place sections next to each other where the page is wide enough."""
    return f'<div class="pair">{"".join(sections)}</div>'


def figures(values: Mapping[str, str]) -> str:
    """Return the key figures, by name."""
    entries = (f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in values.items())
    return f"<dl>{''.join(entries)}</dl>"


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, texts: int = 1) -> str:
    """Return a table; empty without rows.

    Args:
        heads: column titles.
        rows: cells of each row; the first one names the row.
        texts: number of columns of text, which come first and are aligned to the left.
    """
    if not rows:
        return ""
    kinds = [' class="text"' * (number < texts) for number in range(len(heads))]
    head = "".join(f'<th scope="col"{kind}>{_text(name)}</th>' for kind, name in zip(kinds, heads, strict=True))
    body = []
    for first, *cells in rows:
        values = "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds[1:], cells, strict=True))
        body.append(f'<tr><th scope="row">{_cell(first)}</th>{values}</tr>')
    content = f'<table class="full"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return (
        f'<div class="wide tall" role="region" aria-label="{_text(heads[0] or "table")}" tabindex="0">{content}</div>'
    )


def confusions(matrix: Int[Tensor, "c c"], names: Sequence[str], unit: str = "images") -> str:
    """Return a confusion matrix, or a table of the most frequent confusions if there are more than 25 classes.

    Args:
        matrix: counts, with a row per true class and a column per predicted class.
        names: names of the rows and columns.
        unit: what is counted, in the plural.
    """
    totals = matrix.sum(1).tolist()
    if len(names) > MOST_CLASSES:
        pairs = most_confused(matrix)
        rows: list[list[Cell]] = [
            [names[true], names[other], count, Bar(count / totals[true])] for true, other, count in pairs
        ]
        return table(["true class", "predicted class", unit, "share of the class"], rows, texts=2)
    head = "".join(f'<th scope="col"><span>{_text(name)}</span></th>' for name in names)
    body = []
    for name, total, counts in zip(names, totals, matrix.tolist(), strict=True):
        cells = []
        for count in counts:
            share = 100 * count / max(total, 1)
            kind = ' class="strong"' if share > 60 else ""
            shown = f"{count:,}" if unit == "images" or not share else f"{share:.0f} %" if share >= 0.5 else "<1 %"
            cells.append(f'<td{kind} style="--p:{share:.1f}%">{_text(shown) if count else ""}</td>')
        body.append(f'<tr><th scope="row" title="{_text(name)}">{_text(name)}</th>{"".join(cells)}</tr>')
    corner = '<th scope="col">true \\ predicted</th>'
    content = f'<table class="heat"><thead><tr>{corner}{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f'<div class="wide" role="region" aria-label="confusion matrix" tabindex="0">{content}</div>'


def reliability_diagram(bins: Sequence[ReliabilityBin]) -> str:
    """Return a chart of the share of correct predictions by score, with the number of predictions on a log scale."""
    if not bins:
        return ""
    total, most = sum(part.count for part in bins), max(part.count for part in bins)
    marks = [f'<path class="ideal" d="M0 {_PLOT}L{_PLOT} 0"/>']
    for part in bins:
        x, width = _PLOT * part.low + 1, _PLOT * (part.high - part.low) - 2
        height = 40 * math.log1p(part.count) / math.log1p(most)
        text = f"scores {part.low:.2f} to {part.high:.2f}: {part.count:,} predictions ({percent(part.count / total)}),"
        text += f" mean score {part.score:.3f}, {percent(part.correct)} correct"
        marks.append(
            f"<g><title>{text}</title>{_box('column', x, _PLOT * (1 - part.correct), width, _PLOT * part.correct)}"
            f"{_box('score', x, _PLOT * (1 - part.score) - 1.5, width, 3)}"
            f"{_box('count', x, _PLOT + 80 - height, width, height)}</g>"
        )
    return _chart("".join(marks), "score", "share correct", "reliability diagram", 82)


def curve_chart(x: Sequence[float], y: Sequence[float], labels: tuple[str, str], title: str, points: int = 150) -> str:
    """Return a line chart of values from 0 to 1, with at most this many points."""
    step = max(math.ceil(len(x) / points), 1)
    chosen = [*range(0, len(x), step), *([len(x) - 1] if len(x) else [])]
    path = "L".join(f"{_PLOT * x[index]:.1f} {_PLOT * (1 - y[index]):.1f}" for index in chosen)
    return _chart(f'<path class="curve" d="M{path}"/>' if path else "", *labels, title)


def charts(items: Sequence[tuple[str, str]]) -> str:
    """Return small charts in a grid, from pairs of a chart and its caption."""
    parts = [f"<figure>{chart}<figcaption>{_text(text)}</figcaption></figure>" for chart, text in items]
    return f'<div class="charts">{"".join(parts)}</div>' if parts else ""


def gallery(tiles: Sequence[Tile]) -> str:
    """Return pictures with captions in a grid, as JPEG data."""
    parts = []
    for tile in tiles[:TILES]:
        first, *rest = map(_text, tile.caption)
        images = "".join(f'<img src="{_data_uri(picture)}" alt="{first}">' for picture in tile.pictures)
        caption = "<br>".join([f"<b>{first}</b>", *rest])
        parts.append(f'<figure><div class="panels">{images}</div><figcaption>{caption}</figcaption></figure>')
    several = any(len(tile.pictures) > 1 for tile in tiles)
    return f'<div class="gallery{" series" * several}">{"".join(parts)}</div>' if parts else ""


def legend(colors: Mapping[str, Sequence[int]]) -> str:
    """Return the names of colors with a patch of each, by name."""
    patch = '<span><i style="background:rgb({},{},{})"></i>{}</span>'
    return f'<p class="legend">{"".join(patch.format(*rgb, _text(name)) for name, rgb in colors.items())}</p>'


def problem_list(problems: Sequence[str]) -> str:
    """Return the list of problems of the data, shortened to 100 entries."""
    more = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    entries = "".join(f"<li>{_text(text)}</li>" for text in [*problems[:_LISTED], *more])
    return f'<div class="tall"><ul>{entries}</ul></div>' if entries else ""


def write_report(folder: Path, html: str, content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``report.html``, ``report.json`` and ``images.csv``.

    Args:
        folder: output folder, created if missing.
        html: page.
        content: figures, as JSON types.
        rows: one row per image, all with the same keys; None becomes an empty cell.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(html, folder / "report.html")
    write_json(content, folder / "report.json")
    with (
        atomic_write(folder / "images.csv") as path,
        path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.DictWriter(file, rows[0].keys() if rows else ["path"])
        writer.writeheader()
        writer.writerows(rows)


def shrink(image: Image.Image, side: int = 320) -> Image.Image:
    """Return a copy of an RGB image whose longer side is at most `side` pixels."""
    copy = image.copy()
    copy.thumbnail((side, side))
    return copy


def _text(value: str) -> str:
    return escape(printable(value))


def _cell(cell: Cell) -> str:
    if not isinstance(cell, Bar):
        return _text(cell if isinstance(cell, str) else f"{cell:,}")
    if cell.value is None:
        return percent(None)
    return f'{percent(cell.value)}<span class="bar"><i style="width:{100 * cell.value:.1f}%"></i></span>'


def _chart(marks: str, x: str, y: str, title: str, below: int = 34) -> str:
    """Draw marks on a grid from 0 to 1 with labeled axes; `below` is the height below the plotting area."""
    lines, texts = [], []
    for tenth in (0, 2, 4, 6, 8, 10):
        place = _PLOT * tenth / 10
        lines.append(f"M0 {_PLOT - place}H{_PLOT}M{place} 0V{_PLOT}")
        texts.append(f'<text x="-6" y="{_PLOT - place + 4}" text-anchor="end">{tenth / 10:g}</text>')
        texts.append(f'<text x="{place}" y="{_PLOT + 15}" text-anchor="middle">{tenth / 10:g}</text>')
    texts.append(f'<text x="{_PLOT / 2}" y="{_PLOT + 29}" text-anchor="middle">{_text(x)}</text>')
    texts.append(f'<text transform="translate(-28 {_PLOT / 2}) rotate(-90)" text-anchor="middle">{_text(y)}</text>')
    box = f"-40 -8 {_PLOT + 52} {_PLOT + 8 + below}"
    grid = f'<path class="grid" d="{"".join(lines)}"/>'
    return f'<svg viewBox="{box}" role="img" aria-label="{_text(title)}">{grid}{marks}{"".join(texts)}</svg>'


def _box(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
