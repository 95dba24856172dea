"""Every planted defect by name and kind, in all layouts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sppnet.cli.main import run
from sppnet.data.check.items import KINDS
from sppnet.data.check.run import Check, check_data, kind_of
from sppnet.errors import ImageError
from tests.helpers.defects import write_defects
from tests.helpers.detection_data import write_voc
from tests.helpers.images import write_classes
from tests.helpers.segmentation_data import save_mask, write_shapes


@pytest.fixture(scope="module")
def defects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("defects") / "photos"
    return root, write_defects(root)


def found(check: Check) -> list[tuple[str, str]]:
    """Path in the data set and kind of each problem."""
    root = check.root if check.root.is_dir() else check.root.parent
    return sorted((problem.path.relative_to(root).as_posix(), problem.kind) for problem in check.problems)


def reasons(check: Check, kind: str) -> list[str]:
    return [problem.reason for problem in check.problems if problem.kind == kind]


def test_every_planted_defect_is_named_and_nothing_else(
    defects: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, planted = defects
    assert run(["check", str(root), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["layout"] == "class folders"
    assert (content["images"], content["usable"]) == (29, 22)
    named = {str(Path(one["path"]).relative_to(root)): one["kind"] for one in content["problems"]}
    # Of two files that are the same the later one is named.
    planted = {"green/0.png" if path == "blue/strayed.png" else path: kind for path, kind in planted.items()}
    assert named == planted
    assert len(content["problems"]) == len(planted)
    assert all(one["severity"] == KINDS[one["kind"]] and one["reason"] for one in content["problems"])
    assert sum(content["counts"].values()) == len(planted)
    assert content["counts"]["alpha"] == 2
    assert sum(content["shorter_side"].values()) == sum(content["aspect"].values()) == 22
    assert content["sizes"]["height"]["least"] == 1
    assert sum(bucket["images"] for bucket in content["suggestions"]["buckets"]) == 22
    assert [one["severity"] for one in content["problems"]] == ["error"] * 7 + ["warning"] * 5 + ["note"] * 7


def test_people_see_every_file_on_a_line_of_its_own(
    defects: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, planted = defects
    deep = root / ("long " * 40).strip()
    shutil.copytree(root / "red", deep / "again")
    try:
        assert run(["check", str(root)]) == 1
    finally:
        shutil.rmtree(deep)
    lines = capsys.readouterr().out.splitlines()
    assert f"  {deep}/again/empty.jpg: file is empty" in lines
    assert f"  {root}/red/empty.jpg: file is empty" in lines
    assert "error: empty-file (2)" in lines
    assert "note: cmyk (2)" in lines
    assert any(line.startswith(f"{root}: class folders, 39 images") for line in lines)
    for path in planted:
        assert any(str(root / path) in line for line in lines), path


def test_training_runs_to_its_end_on_the_rest_and_names_what_it_left_out(
    defects: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, planted = defects
    out = ["--out", str(tmp_path / "run")]
    assert run(["train", "classify", str(root), "--freeze-backbone", "--levels", "1", *out]) == 0
    told = capsys.readouterr().err
    assert "3 files or folders were passed over" in told
    assert "white: a class folder without an image; it is no class" in told
    assert "7 images could not be used" in told
    left_out = [path for path, kind in planted.items() if KINDS[kind] == "error" or kind in ("empty-class", "left-out")]
    assert all(str(root / path) in told for path in left_out)
    assert "white" not in json.loads((tmp_path / "run/run.json").read_text())["config"]["classes"]
    assert run(["evaluate", str(tmp_path / "run"), str(root), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 22
    assert "7 images could not be used" in captured.err


def test_notes_alone_are_fine_and_a_warning_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "photos", 2)
    Image.new("RGBA", (40, 40), (1, 2, 3, 4)).save(root / "red" / "alpha.png")
    assert run(["check", str(root), "--workers", "1"]) == 0
    assert "0 errors, 0 warnings, 1 notes" in capsys.readouterr().out
    shutil.copy(root / "red" / "0.png", root / "red" / "again.png")
    assert run(["check", str(root)]) == 1
    assert "0 errors, 1 warnings, 1 notes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nowhere"], "no data set at"),
        (["{}/photos", "--workers", "0"], "workers: expected 1 thread or more; got 0"),
        (["{}/photos/red/notes.txt"], "data: expected a folder, a .csv file of path,label or a .json file of COCO"),
        (["{}/empty"], "data: expected images;"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "photos", 1)
    (tmp_path / "photos/red/notes.txt").touch()
    (tmp_path / "empty").mkdir()
    assert run(["check", *(text.format(tmp_path) for text in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert not captured.out


def test_layouts_are_recognised(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_classes(tmp_path / "splits" / split, 1 if split == "val" else 2)
    (tmp_path / "table.csv").write_text("path,label\nsplits/val/red/0.png,red\n")
    (tmp_path / "flat").mkdir()
    shutil.copy(tmp_path / "splits/val/red/0.png", tmp_path / "flat")
    write_voc(tmp_path / "voc", 2, 2)
    layouts = {"splits": "splits of class folders", "splits/train": "class folders", "table.csv": "CSV file"}
    layouts |= {"flat": "images", "voc": "VOC boxes"}
    for name in ("camvid", "voc", "pairs"):
        write_shapes(tmp_path / f"masks-{name}", name, 2)
    layouts |= {"masks-camvid": "CamVid masks", "masks-voc": "VOC masks", "masks-pairs": "folders of images and masks"}
    for name, layout in layouts.items():
        check = check_data(tmp_path / name)
        assert check.layout == layout
        assert not check.problems, check.problems
    shutil.copytree(tmp_path / "masks-voc/SegmentationClass", tmp_path / "voc/SegmentationClass")
    assert check_data(tmp_path / "voc").layout == "VOC boxes and VOC masks"


def test_duplicates_in_other_splits_and_classes_are_told_apart(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        write_classes(tmp_path / split, count)
    pixels = Image.open(tmp_path / "train/red/0.png")
    pixels.save(tmp_path / "train/red/same.bmp")
    pixels.save(tmp_path / "val/red/leak.png")
    pixels.save(tmp_path / "val/blue/worse.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels.rotate(180).save(tmp_path / "train/red/turned.png", exif=exif)
    other = np.asarray(pixels).reshape(pixels.width, pixels.height, 3)  # the same bytes in another shape
    Image.fromarray(other).save(tmp_path / "train/red/other.png")
    (tmp_path / "val/pink").mkdir()
    shutil.copy(tmp_path / "val/red/0.png", tmp_path / "val/pink")
    (tmp_path / "val/pink/0.png").write_bytes(b"")
    check = check_data(tmp_path)
    assert [one for one in found(check) if one[1] != "exif-turned"] == [
        ("train/red/same.bmp", "duplicate"),
        ("train/red/turned.png", "duplicate"),
        ("val/blue/worse.png", "duplicate-across-classes"),
        ("val/pink", "empty-class"),
        ("val/pink", "unknown-class"),
        ("val/pink/0.png", "empty-file"),
        ("val/red/leak.png", "duplicate-across-splits"),
    ]
    first = tmp_path / "train/red/0.png"
    assert reasons(check, "duplicate-across-splits") == [f"the same pixels as {first}; this is in val, that in train"]
    assert reasons(check, "duplicate-across-classes") == [
        f"the same pixels as {first}; this is in val, that in train; this is of the class blue, that of red"
    ]
    assert reasons(check, "empty-class") == ["none of the 1 images of the class pink can be used"]


@pytest.mark.parametrize("row", [0, 255, 256, 299])
def test_one_row_makes_another_image(row: int, tmp_path: Path) -> None:
    pixels = np.zeros((300, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pixels[row, 19, 2] = 1
    Image.fromarray(pixels).save(tmp_path / "b.png")
    assert not check_data(tmp_path).problems


def test_csv_files(tmp_path: Path) -> None:
    write_classes(tmp_path, 1)
    rows = ["path,label", "red/0.png,red", "blue/0.png,blue", "red/1.png,red", "red/0.png,blue", "blue/0.png,blue"]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    check = check_data(tmp_path / "table.csv")
    assert found(check) == [
        ("blue/0.png", "duplicate"),
        ("red/0.png", "duplicate-across-classes"),
        ("red/1.png", "missing"),
    ]
    (again,) = reasons(check, "duplicate-across-classes")
    assert again.endswith("table.csv, line 5 names the file of line 2 again of the class red; here it is blue")
    (tmp_path / "table.csv").write_text("path,label\nred/0.png\n")
    assert found(check_data(tmp_path / "table.csv")) == [("table.csv", "bad-annotation")]


def voc_object(name: str, *corners: float) -> str:
    named = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><bndbox>{named}</bndbox></object>"


def test_voc_boxes(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", 3, 2)  # images of 96 x 112 pixels
    annotations = root / "Annotations"
    boxes = [(5, 5, 5, 5), (1, 1, 113, 97), (100, 1, 120, 20), (113, 97, 150, 150), (1, 1, 112, 96)]
    size = "<size><width>96</width><height>112</height></size>"
    text = "".join(voc_object("disc", *corners) for corners in boxes)
    (annotations / "train0.xml").write_text(f"<annotation>{size}{text}</annotation>")
    (annotations / "train1.xml").write_text("<annotation>")
    (annotations / "test0.xml").write_text(f"<annotation>{voc_object('sqare', 1, 1, 9, 9)}</annotation>")
    (annotations / "test1.xml").unlink()
    (annotations / "spare.xml").write_text("<annotation/>")
    Image.new("RGB", (40, 40)).save(root / "JPEGImages/unused.png")
    (root / "ImageSets/Main/train.txt").write_text("train0\ntrain1\ntrain2\ntest0\ngone\n")
    (root / "ImageSets/Main/test.txt").write_text("test0\ntest1\ntest1\n")
    (root / "ImageSets/Main/trainval.txt").write_text("train0\ntrain1\ntrain2\ntest0\n")
    check = check_data(root)
    assert found(check) == [
        ("Annotations/spare.xml", "no-image"),
        ("Annotations/test1.xml", "missing"),
        ("Annotations/train0.xml", "box-outside"),
        ("Annotations/train0.xml", "box-outside"),
        ("Annotations/train0.xml", "stated-size"),
        ("Annotations/train0.xml", "zero-area-box"),
        ("Annotations/train1.xml", "bad-annotation"),
        ("ImageSets/Main/test.txt", "bad-annotation"),
        ("JPEGImages/gone", "missing"),
        ("JPEGImages/test0.png", "duplicate-across-splits"),
        ("JPEGImages/unused.png", "no-annotation"),
    ]
    assert reasons(check, "box-outside") == [
        "object 3 (disc): the box with edges (99, 0, 120, 20) leaves the image of 96 x 112 (height x width)",
        "object 4 (disc): the box with edges (112, 96, 150, 150) lies wholly outside the image of 96 x 112"
        " (height x width)",
    ]
    assert reasons(check, "zero-area-box")[0].startswith("object 1 (disc): the corners (5, 5, 5, 5) enclose no area")
    assert reasons(check, "duplicate-across-splits") == ["named by test and by train and by trainval"]


def test_a_class_that_training_does_not_show(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", 3, 2)
    (root / "Annotations/test0.xml").write_text(f"<annotation>{voc_object('discs', 1, 1, 9, 9)}</annotation>")
    check = check_data(root)
    assert found(check) == [("Annotations/test0.xml", "untrained-class")]
    assert reasons(check, "untrained-class") == ["object 1 (discs): no training image shows one; did you mean disc?"]
    shutil.copy(root / "JPEGImages/test0.png", root / "JPEGImages/free.png")
    shutil.copy(root / "Annotations/test0.xml", root / "Annotations/free.xml")
    assert ("JPEGImages/free.png", "unlisted") in found(check_data(root))


def write_coco(root: Path, **changes: Any) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(noise).save(root / f"train/{name}.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png", "height": 60, "width": 40}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [],
    }
    (root / "annotations/instances_train.json").write_text(json.dumps(content | changes))
    return root


def test_coco_boxes(tmp_path: Path) -> None:
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 61, 41]},
        {"id": 2, "image_id": 1, "category_id": 8, "bbox": [0, 0, 6, 4]},
        {"id": 3, "image_id": 9, "category_id": 7, "bbox": [0, 0, 6, 4]},
        {"id": 4, "image_id": 1, "category_id": 7, "bbox": [5, 5, 0, 4]},
        {"id": 5, "image_id": 1, "category_id": 7, "bbox": [5, 5, 4]},
        {"id": 6, "image_id": 1, "category_id": 7, "bbox": [-2, 0, 6, 4]},
        {"id": 7, "image_id": 4, "category_id": 7, "bbox": [0, 0, 6, 4]},
    ]
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png", "height": 60, "width": 40}]
    images += [{"id": 2, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}, {"id": 4, "file_name": "gone.png"}]
    check = check_data(write_coco(tmp_path, annotations=boxes, images=images))
    assert check.layout == "COCO boxes"
    file = "annotations/instances_train.json"
    assert found(check) == [
        ("annotations/gone.png", "missing"),
        (file, "bad-annotation"),
        (file, "bad-annotation"),
        (file, "bad-annotation"),
        (file, "box-outside"),
        (file, "no-image"),
        (file, "stated-size"),
        (file, "unknown-class"),
        (file, "zero-area-box"),
    ]
    assert reasons(check, "unknown-class") == ["annotation 2 of a.png: no category has the id 8"]
    assert reasons(check, "no-image") == ["annotation 3: no image has the image_id 9"]
    assert reasons(check, "zero-area-box") == ["annotation 4 of a.png (cat): the bbox [5.0, 5.0, 0.0, 4.0] has no area"]
    assert sorted(reasons(check, "bad-annotation")) == [
        "annotation 5 of a.png (cat): bbox must be four finite numbers, got [5, 5, 4]",
        "image 3: b.png is that of another image too",
        "images[2]: expected an id of its own and a file_name, got {'id': 2, 'file_name': 'a.png'}",
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"images": [], "annotations": [1]}'])
def test_a_json_file_that_is_no_coco(text: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(text)
    assert found(check_data(tmp_path / "boxes.json")) == [("boxes.json", "bad-annotation")]


def test_masks(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "set", "camvid", {"train": 6, "val": 2}, (40, 50))
    masks = root / "trainannot"
    save_mask(np.zeros((50, 40), np.uint8), masks / "train_0.png")
    ids = np.zeros((40, 50), np.uint8)
    ids[:2, :3] = 9
    save_mask(ids, masks / "train_1.png")
    (masks / "train_2.png").unlink()
    (masks / "train_3.png").write_bytes(b"")
    Image.new("L", (50, 40)).save(masks / "train_4.png", "JPEG")
    save_mask(np.zeros((40, 50), np.uint8), masks / "spare.png")
    (root / "val/val_0.png").write_bytes(b"<html>")
    check = check_data(root)
    assert found(check) == [
        ("train/train_2.png", "no-mask"),
        ("trainannot/spare.png", "no-image"),
        ("trainannot/train_0.png", "mask-size"),
        ("trainannot/train_1.png", "unknown-id"),
        ("trainannot/train_3.png", "empty-file"),
        ("trainannot/train_4.png", "unreadable"),
        ("val/val_0.png", "not-an-image"),
    ]
    assert reasons(check, "unknown-id")[0].startswith("ids that stand for no class: 9 (6 pixels)")
    assert reasons(check, "mask-size")[0].startswith("the mask is of 50 x 40 (height x width), but its image")


def test_ids_of_validation_masks_must_be_those_of_training(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "set", "pairs", 4, (40, 50), class_file=False)
    save_mask(np.full((40, 50), 3, np.uint8), root / "val/masks/val_0_mask.png")
    assert found(check_data(root)) == [("val/masks/val_0_mask.png", "unknown-id")]


def test_the_answer_does_not_depend_on_the_number_of_threads(defects: tuple[Path, dict[str, str]]) -> None:
    assert check_data(defects[0], 1) == check_data(defects[0], 4)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("file is damaged: its PNG header cannot be read", "damaged"),
        ("too long a side: 1 x 70000", "too-many-pixels"),
        ("mode F (floating-point grey) has no fixed range", "unreadable"),
        ("colours that stand for no class: (1, 2, 3)", "unknown-id"),
    ],
)
def test_errors_of_the_loader_have_a_kind(reason: str, kind: str) -> None:
    assert kind_of(ImageError("a.png", reason)) == kind


def test_the_page_has_every_kind_with_its_severity() -> None:
    lines = (Path(__file__).parents[3] / "docs/check.md").read_text().splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("| `")]
    assert {kind.strip(" `"): severity.strip() for kind, severity in rows} == KINDS
