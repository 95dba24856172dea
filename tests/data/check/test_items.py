"""Images collected during a check."""

from pathlib import Path

from sppnet.data.check.items import CheckState, Source
from sppnet.data.formats.table import FORMATS
from sppnet.data.items import KINDS, Box, Item, Part, Problems


def test_documentation_lists_every_kind_with_its_severity() -> None:
    lines = (Path(__file__).parents[3] / "docs/check.md").read_text().splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("| `")]
    listed = {kind.strip(" `"): severity.strip() for kind, severity in rows}
    assert {kind: severity for kind, severity in listed.items() if severity in KINDS.values()} == KINDS


def test_entry_is_created_once_and_collects_its_splits() -> None:
    state, path = CheckState(), Path("red/0.png")
    entry = state.entry(path, "train")
    assert state.entry(path, "val") is entry
    assert state.entry(path, "train") is entry
    assert state.entries == {path: entry}
    assert entry.splits == ["train", "val"]


def test_image_of_two_splits_keeps_its_first_annotations() -> None:
    state, path = CheckState(), Path("a.png")
    voc = next(known for known in FORMATS if known.name == "voc")
    for split in ("train", "trainval"):
        item = Item(path, ("bird ",), (Box("cat", (0, 0, 5, 60), False, split),))
        state.add(Source(voc, split, Path("data"), None), Part([item]))
    entry = state.entries[path]
    assert entry.splits == ["train", "trainval"]
    assert [item.boxes[0].where for item in entry.items.values()] == ["train"]
    assert entry.labels == ("bird",)
    problems = Problems()
    assert [(name, list(edges)) for name, edges in entry.fitted_boxes((40, 50), problems)] == [("cat", [0, 0, 5, 40])]
    assert [problem.kind for problem in problems] == ["box-outside"]
