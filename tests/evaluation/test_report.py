"""Parts of evaluation reports: their texts, escaping, pictures and files, and their layout in a browser."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sppnet.evaluation import report
from sppnet.evaluation.calibration import reliability
from sppnet.evaluation.report import Bar, Tile
from tests.helpers.browsing import browser
from tests.helpers.html_page import Page

__all__ = ["browser"]
HOSTILE = "<script>x</script>&\"' \x1b\udcff"
ESCAPED = HOSTILE.replace("\x1b", r"\x1b").replace("\udcff", r"\udcff")


def whole_page(classes: int = 4) -> str:
    """Return a page with every part, whose names are hostile."""
    names = [f"{HOSTILE} a rather long class name {number}" for number in range(classes)]
    scores = torch.rand(300)
    tiles = [Tile((Image.new("RGB", (40, 30), "red"),), (names[0], "second line"))] * 30
    return report.page(
        HOSTILE,
        HOSTILE,
        report.figures({HOSTILE: HOSTILE}),
        report.section("Gallery", report.gallery(tiles), note=HOSTILE),
        report.section("Table", report.table(["class", "F1", "images"], [[name, Bar(0.5), 3] for name in names])),
        report.section("Confusion", report.confusions(torch.randint(0, 9, (classes, classes)), names)),
        report.side_by_side(
            report.section("Reliability", report.reliability_diagram(reliability(scores, torch.rand(300) < scores))),
            report.section("Curves", report.charts([(report.curve_chart([0, 1], [1, 0], ("x", "y"), names[0]), "c")])),
        ),
        report.section("Colors", report.legend({HOSTILE: (1, 2, 3)})),
        report.section("Problems", report.problem_list([HOSTILE] * 150)),
    )


def test_pages_escape_all_names_and_load_nothing() -> None:
    text = whole_page()
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "\x1b" not in text
    assert page.words().count(ESCAPED) > 20
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.values("img", "src"))
    assert "http" not in text
    assert "and 50 more" in page.words()


def test_galleries_hold_a_limited_number_of_pictures() -> None:
    sources = Page(whole_page()).values("img", "src")
    assert len(sources) == report.TILES
    picture = Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2])))
    assert (picture.format, picture.size) == ("JPEG", (40, 30))


def test_empty_parts_leave_no_section() -> None:
    assert report.section("none", report.table(["a"], []), report.gallery([]), report.problem_list([])) == ""
    assert report.reliability_diagram(()) == ""


def test_large_matrices_become_a_list_of_confusions() -> None:
    matrix = 10 * torch.eye(26, dtype=torch.long)
    matrix[3, 5] = 30
    names = [f"class{number}" for number in range(26)]
    words = Page(report.confusions(matrix, names)).words()
    assert words == "true class predicted class images share of the class class3 class5 30 75.0 %"
    assert "true \\ predicted" in Page(report.confusions(matrix[:25, :25], names[:25])).words()


def test_pixel_counts_are_shares_of_the_row() -> None:
    words = Page(report.confusions(torch.tensor([[990, 9, 1], [0, 0, 0], [1, 1, 2]]), "abc", "pixels")).words()
    assert words == "true \\ predicted a b c a 99 % 1 % <1 % b c 25 % 25 % 50 %"


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    values = [number / 9999 for number in range(10_000)]
    chart = report.curve_chart(values, values, ("x", "y"), "curve", points=50)
    path = next(value for value in Page(chart).values("path", "d") if value.startswith("M0.0"))
    assert 50 <= path.count("L") <= 52
    assert path.endswith("220.0 0.0")
    assert "curve" not in Page(report.curve_chart([], [], ("x", "y"), "none")).values("path", "class")


def test_files_are_complete_for_any_file_name(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"path": 'a,"b"\n.png', "score": 0.5}, {"path": "\udcff.png", "score": None}]
    report.write_report(tmp_path / "new" / "folder", "<p>ü</p>", {"ece": 0.1, "name": "ü"}, rows)
    folder = tmp_path / "new" / "folder"
    assert {file.name for file in folder.iterdir()} == {"report.html", "report.json", "images.csv"}
    assert (folder / "report.html").read_text(encoding="utf-8") == "<p>ü</p>"
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == {"ece": 0.1, "name": "ü"}
    with (folder / "images.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["path", "score"], ['a,"b"\n.png', "0.5"], ["\\udcff.png", ""]]
    report.write_report(folder, "", {}, [])
    assert (folder / "images.csv").read_text().strip() == "path"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("classes", [4, 25, 60])
def test_pages_fit_narrow_and_wide_windows_in_both_color_schemes(
    browser: Any, tmp_path: Path, width: int, classes: int
) -> None:
    (tmp_path / "report.html").write_text(whole_page(classes), encoding="utf-8", errors="backslashreplace")
    backgrounds = set()
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        requests: list[str] = []
        page.on("request", lambda request, urls=requests: urls.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        page.close()
    assert len(backgrounds) == 2
