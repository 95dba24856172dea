"""Detection data sets converted between all formats, and read back by the package's own readers."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sppnet.data.formats.boxes import read_boxes
from sppnet.data.formats.detection import DetectionData, DetectionSample, detection_splits, read_detection
from sppnet.detect.convert import convert_detection
from sppnet.detect.writers import Format
from tests.helpers.annotation_files import object_xml, write_annotation, write_image, write_json, write_list, write_yolo

SPLITS = ("train", "val", "test")
CLASSES = ("Zelle", "no", "Köpfe & <Füße>")  # not sorted, as in VOC data
# (image, boxes of (edges, class, difficult)) by split; the images have 30 x 40 pixels (height x width).
CONTENT = {
    "train": [("a/0.jpg", [((1, 2, 30, 25), 0, False), ((0, 0, 40, 30), 2, True)]), ("b/0.jpg", [])],
    "val": [
        ("0.jpg", [((5, 6, 9, 20), 1, False), ((10, 10, 11, 25), 0, False)]),
        ("日本, é 1.jpg", [((39, 28, 40, 30), 0, False)]),
    ],
    "test": [("c.d.jpg", [((3, 3, 37, 29), 2, False)])],
}


def write_coco(root: Path) -> Path:
    for split, images in CONTENT.items():
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for name, objects in images:
            path = write_image(root / "images" / split / name)
            path.write_bytes(path.read_bytes() + f"{split} {name}".encode())  # no two files are equal
            entries.append({"id": len(entries), "file_name": name, "width": 40, "height": 30})
            for (x1, y1, x2, y2), label, difficult in objects:
                box, image = [x1, y1, x2 - x1, y2 - y1], entries[-1]["id"]
                annotation = {"id": len(annotations), "image_id": image, "category_id": 10 * label, "bbox": box}
                annotations.append(annotation | {"iscrowd": int(difficult)})
        categories = [{"id": 10 * number, "name": name} for number, name in enumerate(CLASSES)]
        content = {"images": entries, "annotations": annotations, "categories": categories}
        write_json(root / "annotations" / f"{split}.json", content)
    return root


def objects(data: DetectionData, sample: DetectionSample, *, flags: bool) -> list[tuple[str, bool]]:
    pairs = zip(sample.labels.tolist(), sample.difficult.tolist(), strict=True)
    return [(data.classes[label], flags and difficult) for label, difficult in pairs]


def assert_same(first: Path, second: Path, tolerance: float, *, flags: bool = True, ordered: bool = True) -> None:
    assert detection_splits(first) == detection_splits(second)
    for split in detection_splits(first) or (None,):
        one, two = read_detection(first, split), read_detection(second, split)
        assert not two.problems
        assert two.classes == one.classes if ordered else sorted(two.classes) == list(two.classes)
        samples = {sample.path.read_bytes(): sample for sample in two.samples}
        assert samples.keys() == {sample.path.read_bytes() for sample in one.samples}
        for sample in one.samples:
            other = samples[sample.path.read_bytes()]
            assert objects(one, sample, flags=flags) == objects(two, other, flags=flags)
            torch.testing.assert_close(other.boxes, sample.boxes, atol=tolerance, rtol=0)


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
@pytest.mark.parametrize("source", ["coco", "yolo", "voc"])
def test_every_format_is_converted_to_every_other(source: Format, to: Format, tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco")
    first = tmp_path / "first"
    assert convert_detection(coco, first, source).images == {"train": 2, "val": 2, "test": 1}
    assert_same(coco, first, 1e-3 if source != "voc" else 1, flags=source != "yolo", ordered=source != "voc")
    second = tmp_path / "second"
    conversion = convert_detection(first, second, to)
    assert_same(first, second, 1e-3 if to != "voc" else 1, flags=to != "yolo", ordered="voc" not in (source, to))
    lost = to == "yolo" and source != "yolo"
    assert len(conversion.problems) == lost, conversion.problems
    assert not conversion.failures
    names = {path.name for path in (second / ("JPEGImages" if to == "voc" else "images")).rglob("*.jpg")}
    assert names == {"0.jpg", "0-2.jpg", "0-3.jpg", "日本, é 1.jpg", "c.d.jpg"}


@pytest.mark.parametrize("source", ["coco", "yolo", "voc"])
def test_csv_is_read_back_as_box_files(source: Format, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    convert_detection(write_coco(tmp_path / "coco"), data, source)
    convert_detection(data, out, "csv")
    for split in SPLITS:
        samples = (sample for sample in read_detection(data, split).samples if len(sample.boxes))
        expected = {sample.path.read_bytes(): sample.boxes for sample in samples}
        found = {Path(image.path).read_bytes(): image.boxes for image in read_boxes(out / f"{split}.csv", out).images}
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    with (out / "train.csv").open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [CLASSES[0], CLASSES[2]]
    assert (out / "images" / "train").is_dir()


@pytest.mark.parametrize("to", ["coco", "yolo", "voc", "csv"])
def test_data_without_splits_stay_without(to: Format, tmp_path: Path) -> None:
    data = tmp_path / "voc"
    write_annotation(data, "a", object_xml("dog", 1, 1, 20, 20), object_xml("cat", 2, 2, 20, 20))
    write_annotation(data, "b", image="")
    write_image(data / "JPEGImages" / "b.png")
    assert convert_detection(data, tmp_path / "out", to).images == {None: 2}
    if to == "csv":
        assert len(read_boxes(tmp_path / "out" / "boxes.csv", tmp_path / "out").images) == 1
    else:
        assert_same(data, tmp_path / "out", 1e-5)


def test_images_in_several_voc_lists_are_written_once_and_yolo_reports_the_split_it_lacks(tmp_path: Path) -> None:
    data = tmp_path / "VOC"
    for name in ("a", "b"):
        write_annotation(data, name, object_xml("dog", 1, 1, 20, 20))
        (data / "JPEGImages" / f"{name}.jpg").write_bytes(
            (data / "JPEGImages" / f"{name}.jpg").read_bytes() + name.encode()
        )
    for split, text in {"train": "a\n", "val": "b\n", "trainval": "a\nb\n", "mine": "a\n"}.items():
        write_list(data, split, text)
    convert_detection(data, tmp_path / "voc", "voc")
    assert_same(data, tmp_path / "voc", 0)
    assert sorted(path.name for path in (tmp_path / "voc" / "JPEGImages").iterdir()) == ["a.jpg", "b.jpg"]
    conversion = convert_detection(data, tmp_path / "yolo", "yolo")
    assert conversion.images == {"train": 1, "val": 1}
    assert [text.partition(":")[0] for text in conversion.problems] == ["split trainval", "split mine"]
    (data / "ImageSets" / "Main").rename(data / "old")
    write_list(data, "mine", "a\n")
    with pytest.raises(ValueError, match=r"to: expected a format other than yolo for .*no split train, val or test"):
        convert_detection(data, tmp_path / "new", "yolo")
    assert not (tmp_path / "new").exists()


def test_an_image_with_other_objects_in_another_split_gets_a_second_annotation(tmp_path: Path) -> None:
    data = tmp_path / "coco"
    write_image(data / "images" / "a.jpg")
    for split, box in (("train", [1, 2, 10, 10]), ("val", [3, 4, 20, 20])):
        image, category = {"id": 1, "file_name": "a.jpg"}, {"id": 1, "name": "dog"}
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box}
        content = {"images": [image], "annotations": [annotation], "categories": [category]}
        write_json(data / "annotations" / f"{split}.json", content)
    convert_detection(data, tmp_path / "voc", "voc")
    assert_same(data, tmp_path / "voc", 0)


def test_images_are_hard_links(tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco")
    (coco / "images" / "test" / "c.d.jpg").rename(tmp_path / "real.jpg")
    (coco / "images" / "test" / "c.d.jpg").symlink_to(tmp_path / "real.jpg")
    convert_detection(coco, tmp_path / "out", "yolo")
    link = tmp_path / "out" / "images" / "test" / "c.d.jpg"
    assert link.samefile(tmp_path / "real.jpg")
    assert not link.is_symlink()


def test_names_that_lists_cannot_represent_are_changed(tmp_path: Path) -> None:
    for name in (" a.jpg", "a .jpg", "b\nc.jpg", ".d.jpg"):
        write_image(tmp_path / "coco" / name)
    images = [{"id": number, "file_name": path.name} for number, path in enumerate((tmp_path / "coco").iterdir())]
    write_json(tmp_path / "coco" / "data.json", {"images": images, "annotations": [], "categories": []})
    convert_detection(tmp_path / "coco" / "data.json", tmp_path / "voc", "voc")
    found = [sample.path.name for sample in read_detection(tmp_path / "voc").samples]
    assert sorted(found) == ["a-2.jpg", "a.jpg", "b c.jpg", "d.jpg"]


def test_unreadable_images_are_omitted(tmp_path: Path) -> None:
    data = write_yolo(tmp_path / "yolo", "0 0.5 0.5 0.5 0.5")
    (data / "images" / "train" / "a.jpg").write_bytes(b"no image")
    conversion = convert_detection(data, tmp_path / "coco", "coco")
    assert [Path(error.path).name for error in conversion.failures] == ["a.jpg"]
    images = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["b.jpg"]


def test_a_killed_conversion_leaves_no_folder(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "coco")
    code = (
        "import os, sys, sppnet.detect.convert as convert\n"
        "convert._annotations = lambda *_: os._exit(9)\n"
        "convert.convert_detection(sys.argv[1], sys.argv[2], 'yolo')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(data), str(tmp_path / "out")], check=False)
    assert done.returncode == 9
    assert not (tmp_path / "out").exists()
    assert convert_detection(data, tmp_path / "out", "yolo").images == {"train": 2, "val": 2, "test": 1}


def test_whole_pixels_are_exact_in_yolo(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", (641, 479)).save(tmp_path / "a.jpg")
    boxes = [[1, 2, 637, 475], [333, 7, 11, 13], [600, 400, 41, 79]]
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "area": 1, "iscrowd": 0}
        for number, box in enumerate(boxes)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 641, "height": 479}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": annotations,
    }
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(content), encoding="utf-8")
    convert_detection(tmp_path, tmp_path / "yolo", "yolo")
    assert torch.equal(
        read_detection(tmp_path / "yolo", "train").samples[0].boxes, read_detection(tmp_path, "train").samples[0].boxes
    )
