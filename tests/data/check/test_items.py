"""Items and problems collected during a check."""

from pathlib import Path

from sppnet.data.check.items import KINDS, CheckState, Problem, has_one_image, listed_names


def test_documentation_lists_every_kind_with_its_severity() -> None:
    lines = (Path(__file__).parents[3] / "docs/check.md").read_text().splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("| `")]
    assert {kind.strip(" `"): severity.strip() for kind, severity in rows} == KINDS


def test_item_is_created_once_and_collects_its_splits() -> None:
    gathered, path = CheckState(), Path("red/0.png")
    item = gathered.item(path, "train", "red")
    assert gathered.item(path, "val") is item
    assert gathered.item(path, "train") is item
    assert gathered.items == {path: item}
    assert (item.splits, item.label) == (["train", "val"], "red")


def test_reports_repeated_names_of_a_list(tmp_path: Path) -> None:
    gathered, file = CheckState(), tmp_path / "train.txt"
    file.write_text("b\na\nb\n")
    files = {name: [tmp_path / f"{name}.png"] for name in ("a", "b")}
    assert listed_names(file, files, gathered) == ["b", "a"]
    assert gathered.problems == [Problem(file, "bad-annotation", "expected each image once, got repeated names: b")]


def test_reports_missing_and_ambiguous_names() -> None:
    gathered, photos, source = CheckState(), Path("JPEGImages"), Path("train.txt")
    files = {"a": [photos / "a.png"], "b": [photos / "b.jpg", photos / "b.png"]}
    assert [has_one_image(name, files, photos, source, gathered) for name in ("a", "b", "c")] == [True, False, False]
    assert [(problem.path.name, problem.kind, problem.severity) for problem in gathered.problems] == [
        ("b.jpg", "bad-annotation", "error"),
        ("c", "missing", "error"),
    ]
