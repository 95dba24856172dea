"""`sppnet features`: what is in the files, what becomes of killed runs, bad images and other settings."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sppnet import RegionEncoder
from sppnet.cli.main import run
from sppnet.data.formats.boxes import ImageBoxes, read_boxes
from sppnet.data.images import load_image
from sppnet.features.pictures import draw_regions
from sppnet.features.shards import read_metadata
from sppnet.features.vectors import compute_features, plan_shards, read_features

ROOT = Path(__file__).parents[2]
SIZES = {"a.png": (60, 90), "in/b.png": (80, 50), "c.png": (70, 70), "d.png": (64, 96)}
OPTIONS = ["--backbone", "zf5", "--weights", "none", "--levels", "2,1", "--scales", "100"]


def write_images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    return folder


def corners(name: str) -> list[list[int]]:
    height, width = SIZES[name]
    return [[0, 0, width, height], [10, 10, width - 5, 40], [20, 5, 44, 45]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    rows = [f"{name},{','.join(map(str, box))},{name[-5]}{i}" for name in SIZES for i, box in enumerate(corners(name))]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,x1,y1,x2,y2,id", *rows]))
    return tmp_path / "boxes.csv"


@pytest.fixture(scope="module")
def encoder() -> RegionEncoder:
    torch.manual_seed(0)
    return RegionEncoder("zf5", (2, 1), (100,))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are read."""
    names: list[str] = []

    def load(path: Path) -> Image.Image:
        names.append(path.name)
        return load_image(path)

    monkeypatch.setattr("sppnet.features.files.load_image", load)
    return names


def features(images: Path, boxes: Path, out: Path, *more: str) -> int:
    return run(["features", str(images), "--boxes", str(boxes), "--out", str(out), *OPTIONS, *more])


def contents(out: Path) -> dict[str, Any]:
    """What is in the files; the order of safetensors' metadata is another each time."""
    shards = {path.name: (path.stat().st_size, read_metadata(path)) for path in out.glob("0*.*")}
    vectors = [(each.image, each.ids, each.boxes.tolist(), each.vectors.tolist()) for each in read_features(out)]
    return {"index": index(out), "shards": shards, "vectors": vectors}


def index(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "index.json").read_text())
    return content


@pytest.mark.parametrize("storage", ["safetensors", "parquet"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_files_hold_the_encoders_vectors(
    images: Path, boxes: Path, tmp_path: Path, storage: str, dtype: str, encoder: RegionEncoder
) -> None:
    if storage == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    assert features(images, boxes, out, "--format", storage, "--dtype", dtype) == 0
    found = list(read_features(out))
    assert [each.image for each in found] == list(SIZES)
    for each in found:
        assert each.ids == tuple(f"{each.image[-5]}{i}" for i in range(3))
        assert each.boxes.tolist() == corners(each.image)
        assert each.boxes.dtype == torch.float32
        (expected,) = encoder(images / each.image, each.boxes)
        assert torch.equal(each.vectors, expected.to(getattr(torch, dtype)))
    assert index(out)["vector"]["length"] == encoder.length == found[0].vectors.shape[1]


def test_an_index_tells_what_the_vectors_are(images: Path, boxes: Path, tmp_path: Path) -> None:
    assert features(images, boxes, tmp_path / "out") == 0
    content = index(tmp_path / "out")
    settings = content["settings"]
    assert content["complete"] is True
    assert content["shards"] == [{"file": "00000.safetensors", "rows": 12}]
    assert content["failures"] == []
    assert content["vector"] == {
        "length": 5 * 256,
        "channels": 256,
        "layout": "levels in the order given, inside a level channel, row, column",
    }
    assert {len(settings.pop(name)) for name in ("weights", "boxes")} == {16}
    assert settings == {
        "storage": "safetensors",
        "dtype": "float16",
        "backbone": "zf5",
        "stage": None,
        "levels": [2, 1],
        "scales": [100],
        "scale_rule": "paper",
        "max_side": 2000,
        "rule": "paper",
        "reduce": "max",
    }


def test_files_are_easy_to_read_without_this_package(images: Path, boxes: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    assert features(images, boxes, tmp_path / "out") == 0
    with safe_open(tmp_path / "out" / "00000.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert {name: (array.shape, str(array.dtype)) for name, array in tensors.items()} == {
        "vectors": ((12, 1280), "float16"),
        "boxes": ((12, 4), "float32"),
        "image": ((12,), "int64"),
    }
    assert [json.loads(metadata["images"])[number] for number in tensors["image"][::3]] == list(SIZES)
    assert json.loads(metadata["ids"])[:4] == ["a0", "a1", "a2", "b0"]

    parquet = pytest.importorskip("pyarrow.parquet")
    assert features(images, boxes, tmp_path / "table", "--format", "parquet") == 0
    table = parquet.read_table(tmp_path / "table" / "00000.parquet")
    assert table.column_names == ["image", "id", "x1", "y1", "x2", "y2", "vector"]
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: halffloat>[1280]"
    row = table.slice(4, 1).to_pylist()[0]
    assert (row["image"], row["id"], row["x1"], row["x2"]) == ("in/b.png", "b1", 10.0, 45.0)
    assert row["vector"] == tensors["vectors"][4].tolist()


def test_every_form_of_box_file_gives_the_same_vectors(images: Path, boxes: Path, tmp_path: Path) -> None:
    lines, entries = [], []
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        scaled = [[x1 / width, y1 / height, x2 / width, y2 / height] for x1, y1, x2, y2 in corners(name)]
        lines.append(json.dumps({"image": name, "boxes": scaled, "format": "xyxy-normalised"}))
        sides = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in corners(name)]
        entries += [{"id": 3 * number + i, "image_id": number, "bbox": box} for i, box in enumerate(sides)]
    (tmp_path / "boxes.jsonl").write_text("\n".join(lines))
    listed = [{"id": number, "file_name": name} for number, name in enumerate(SIZES)]
    (tmp_path / "boxes.json").write_text(json.dumps({"images": listed, "annotations": entries}))
    found = []
    for file in (boxes, tmp_path / "boxes.jsonl", tmp_path / "boxes.json"):
        assert features(images, file, tmp_path / file.suffix[1:]) == 0
        found.append(torch.cat([each.vectors for each in read_features(tmp_path / file.suffix[1:])]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_missing_or_damaged_file_is_made_again_and_no_other(
    images: Path, boxes: Path, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppnet.features.vectors._MOST_IMAGES", 1)
    out = tmp_path / "out"
    assert features(images, boxes, out) == 0
    before = contents(out)
    assert len(before["shards"]) == 4
    (out / "00001.safetensors").unlink()
    (out / "00002.safetensors").write_bytes((out / "00002.safetensors").read_bytes()[:-9])
    (out / "index.json").write_text((out / "index.json").read_text().replace("true", "false"))
    loaded.clear()
    assert features(images, boxes, out) == 0
    assert loaded == ["b.png", "c.png"]
    assert contents(out) == before
    loaded.clear()
    assert features(images, boxes, out) == 0
    assert loaded == []


def test_a_damaged_parquet_file_is_made_again(images: Path, boxes: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    assert features(images, boxes, tmp_path / "out", "--format", "parquet") == 0
    path = tmp_path / "out" / "00000.parquet"
    before = path.read_bytes()
    path.write_bytes(before[:-5])
    assert features(images, boxes, tmp_path / "out", "--format", "parquet") == 0
    assert path.read_bytes() == before


def test_a_killed_run_goes_on(
    images: Path, boxes: Path, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys, time; from sppnet.cli import main as cli; from sppnet.features import vectors as r; r._MOST_IMAGES = 1;"
        "load = r.load_image; r.load_image = lambda path: (time.sleep(0.3), load(path))[1]; cli.main(sys.argv[1:])"
    )
    out = tmp_path / "out"
    arguments = ["features", str(images), "--boxes", str(boxes), "--out", str(out), *OPTIONS]
    with subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while not (out / "00001.safetensors").exists() and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    done = len(list(out.glob("0*.safetensors")))
    assert 0 < done < 4
    with pytest.raises(ValueError, match="not complete; the same command goes on"):
        read_features(out)
    monkeypatch.setattr("sppnet.features.vectors._MOST_IMAGES", 1)
    assert features(images, boxes, out) == 0
    assert loaded == [Path(name).name for name in SIZES][done:]
    assert features(images, boxes, tmp_path / "undisturbed") == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_an_image_that_has_changed_is_read_again(
    images: Path, boxes: Path, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppnet.features.vectors._MOST_IMAGES", 1)
    assert features(images, boxes, tmp_path / "out") == 0
    before = {each.image: each.vectors for each in read_features(tmp_path / "out")}
    Image.new("RGB", SIZES["c.png"][::-1], "red").save(images / "c.png")
    loaded.clear()
    assert features(images, boxes, tmp_path / "out") == 0
    assert loaded == ["c.png"]
    after = {each.image: each.vectors for each in read_features(tmp_path / "out")}
    assert [name for name in SIZES if not torch.equal(before[name], after[name])] == ["c.png"]


@pytest.mark.parametrize(
    ("options", "how", "message"),
    [
        ({"levels": (3, 1)}, {}, "levels [2, 1], not [3, 1]; take another folder"),
        ({"scales": (100, 150)}, {}, "scales [100], not [100, 150]"),
        ({"max_side": 300}, {}, "max_side 2000, not 300"),
        ({"rule": "released"}, {}, "rule paper, not released"),
        ({"reduce": "avg"}, {}, "reduce max, not avg"),
        ({"scale_rule": "released"}, {}, "scale_rule paper, not released"),
        ({}, {"dtype": "float32"}, "dtype float16, not float32"),
        ({}, {"storage": "parquet"}, "storage safetensors, not parquet"),
        ({"rule": "roi_pool"}, {"dtype": "float32"}, "dtype float16, not float32; rule paper, not roi_pool"),
    ],
)
def test_other_settings_do_not_mix(
    images: Path, boxes: Path, tmp_path: Path, encoder: RegionEncoder, options: Any, how: Any, message: str
) -> None:
    if how.get("storage") == "parquet":
        pytest.importorskip("pyarrow")
    data = read_boxes(boxes, images).images
    compute_features(encoder, data, images, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = RegionEncoder(encoder.backbone, **{"levels": (2, 1), "scales": (100,), **options})
    with pytest.raises(ValueError, match=re.escape(f"holds vectors of other settings: {message}")):
        compute_features(other, data, images, tmp_path / "out", draw=1, **how)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_how_bad_boxes_are_met_is_no_setting(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert features(images, boxes, tmp_path / "out") == 0
    assert features(images, boxes, tmp_path / "out", "--on-bad", "clip", "--box-format", "xyxy") == 0
    assert features(images, boxes, tmp_path / "out", "--levels", "1") == 2
    assert f"out: {tmp_path / 'out'} holds vectors of other settings: levels" in capsys.readouterr().err


def test_other_boxes_and_other_weights_do_not_mix(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert features(images, boxes, tmp_path / "out") == 0
    data = read_boxes(boxes, images).images
    torch.manual_seed(1)
    other = RegionEncoder("zf5", (2, 1), (100,))
    with pytest.raises(ValueError, match=r"other settings: weights [0-9a-f]{16}, not [0-9a-f]{16}; take"):
        compute_features(other, data, images, tmp_path / "out")
    boxes.write_text(boxes.read_text().replace("44,45", "44,46", 1))
    assert features(images, boxes, tmp_path / "out") == 2
    assert "other settings: boxes " in capsys.readouterr().err


def test_images_that_cannot_be_read_are_named_and_the_rest_is_done(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, good = tmp_path / "out", (images / "in" / "b.png").read_bytes()
    (images / "in" / "b.png").write_bytes(good[: len(good) // 2])
    for _ in range(2):
        assert features(images, boxes, out) == 1
        assert "1 image could not be used" in (said := capsys.readouterr().err)
        assert "in/b.png: file is truncated" in said
        assert index(out)["failures"] == [{"image": "in/b.png", "reason": "file is truncated"}]
        assert [each.image for each in read_features(out)] == ["a.png", "c.png", "d.png"]
        assert index(out)["shards"][0]["rows"] == 9
    (images / "in" / "b.png").write_bytes(good)
    assert features(images, boxes, out) == 0
    assert [each.image for each in read_features(out)] == list(SIZES)
    assert index(out)["failures"] == []


@pytest.mark.parametrize("storage", ["safetensors", "parquet"])
def test_a_folder_without_one_good_image(images: Path, tmp_path: Path, storage: str) -> None:
    if storage == "parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / "one.csv").write_text("image,x,y,w,h\na.png,1,1,9,9\n")
    content = (images / "a.png").read_bytes()
    (images / "a.png").write_bytes(content[: len(content) // 2])
    assert features(images / "a.png", tmp_path / "one.csv", tmp_path / "out", "--format", storage) == 1
    assert list(read_features(tmp_path / "out")) == []


def test_boxes_left_out_are_listed(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes.write_text(boxes.read_text() + "\nc.png,500,500,600,600,far")
    assert features(images, boxes, tmp_path / "out") == 2
    assert "wholly outside" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert features(images, boxes, tmp_path / "out", "--on-bad", "drop") == 0
    assert "1 boxes or images were cut or left out" in capsys.readouterr().err
    assert "line 14" in (tmp_path / "out" / "problems.txt").read_text()
    assert sum(len(each.ids) for each in read_features(tmp_path / "out")) == 12


def test_a_map_that_half_precision_does_not_hold_is_a_failure(images: Path, boxes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = RegionEncoder("zf5", (2, 1), (100,))
    weight = [parameter for parameter in large.parameters() if parameter.ndim == 4][-1]
    weight.data *= 1e9
    data = read_boxes(boxes, images).images
    report = compute_features(large, data, images, tmp_path / "half")
    assert [failure.path for failure in report.failures] == list(SIZES)
    assert re.fullmatch(r"its map reaches [\d.e+]+, more than float16 holds", report.failures[0].reason)
    report = compute_features(large, data, images, tmp_path / "float", dtype="float32")
    assert report.failures == ()
    assert all(each.vectors.isfinite().all() for each in read_features(tmp_path / "float"))


def test_an_image_with_more_boxes_than_a_file_holds(
    images: Path, boxes: Path, tmp_path: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppnet.features.vectors._MOST_ROWS", 2)
    assert features(images, boxes, tmp_path / "parts") == 0
    assert loaded == [Path(name).name for name in SIZES]
    monkeypatch.setattr("sppnet.features.vectors._MOST_ROWS", 100)
    assert features(images, boxes, tmp_path / "whole") == 0
    parts, whole = list(read_features(tmp_path / "parts")), list(read_features(tmp_path / "whole"))
    assert [len(each.ids) for each in parts] == [2, 1] * 4
    assert torch.equal(torch.cat([each.vectors for each in parts]), torch.cat([each.vectors for each in whole]))
    assert sum((each.ids for each in parts), ()) == sum((each.ids for each in whole), ())


def test_files_stay_below_their_bound(
    images: Path, encoder: RegionEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppnet.features.vectors._MOST_BYTES", 100_000)
    monkeypatch.setattr("sppnet.features.encoder._CHUNK", 20_000)
    many = torch.tensor([[1.0, 2, 30, 40]]).expand(500, 4).contiguous()
    data = [ImageBoxes(images / "a.png", many, tuple(map(str, range(500))))]
    report = compute_features(encoder, data, images, tmp_path / "out")
    assert report.files == -(-500 // (100_000 // (2 * encoder.length)))
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert 80_000 < max(sizes) < 110_000
    assert report.vectors == 500


@given(st.lists(st.integers(0, 12), max_size=30), st.integers(1, 9), st.integers(1, 4))
def test_plans_take_every_box_once_and_part_no_image_without_need(counts: list[int], rows: int, images: int) -> None:
    plan = plan_shards(counts, rows, images)
    taken = [(piece.image, box) for shard in plan for piece in shard for box in range(piece.start, piece.stop)]
    assert taken == [(image, box) for image, count in enumerate(counts) for box in range(count)]
    for shard in plan:
        assert 1 <= len(shard) <= images
        assert sum(piece.stop - piece.start for piece in shard) <= rows
        for piece in shard:
            assert counts[piece.image] > rows or (piece.start, piece.stop) == (0, counts[piece.image])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--levels", "2,0"], "smallest level is 1"),
        (["--scales", "100;200"], "scales: expected pixels such as 688 or 480,576,688,864,1200; got '100;200'"),
        (["--scales", "1"], "scales: zf5 takes shorter sides of at least"),
        (["--max-side", "50"], "max_side: expected at least the largest scale"),
        (["--draw", "-1"], "draw: expected 0 or more images; got -1"),
        (["--device", "abacus"], "device: 'abacus' cannot be used here"),
        (["--weights", "hub"], "there are no hub weights for zf5"),
        (["--box-format", "xywh"], "box_format must be xyxy or xyxy-normalised, got xywh"),
    ],
)
def test_wrong_arguments_exit_with_2(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert features(images, boxes, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parquet_without_pyarrow_says_what_to_install(
    images: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert features(images, boxes, tmp_path / "out", "--format", "parquet") == 1
    assert 'pip install "sppnet[features]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one that `sppnet features` wrote; .* has no index.json"):
        read_features(tmp_path)
    for text, message in (("{", "is not JSON"), ('{"format": 9}', "is no index that this version")):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_features(tmp_path)


def test_pictures_are_drawn_of_the_first_images(images: Path, boxes: Path, tmp_path: Path) -> None:
    assert features(images, boxes, tmp_path / "out", "--draw", "2") == 0
    found = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert found == ["00000-a.png", "00001-b.png"]


def test_a_picture_is_dark_outside_the_cells_and_tinted_inside(encoder: RegionEncoder) -> None:
    image = Image.new("RGB", (200, 100), (200, 200, 200))
    box = torch.tensor([[60.0, 30, 140, 70]])
    sheet = np.asarray(draw_regions(encoder, image, box, ["a"])).astype(int)
    panel = sheet[-340:-10, 10:330]
    tinted = (panel[:, :, 0] - panel[:, :, 2] > 40) & (panel[:, :, 1] > 90)
    dark = (panel == 70).all(2)
    assert 0.03 < tinted.mean() < 0.5
    assert 0.02 < dark.mean() < 0.6
    rows, columns = tinted.nonzero()
    place = encoder.cells(box[0], (100, 200)).cells
    # The cells' share of the picture is that of the tinted ones, of which the bins leave about every second untinted.
    assert (rows.max() - rows.min()) / (columns.max() - columns.min()) == pytest.approx(
        (place[3] - place[1]) / (place[2] - place[0]), rel=0.35
    )
    assert (np.asarray(image) == 200).all()


@pytest.mark.parametrize("rule", ["paper", "roi_pool"])
def test_boxes_of_any_place_and_name_are_drawn(rule: Any) -> None:
    encoder = RegionEncoder("zf5", ((2, 3), 1), (100, 150), rule=rule)
    image = Image.new("RGB", (90, 60))
    boxes = torch.tensor([[-500.0, -9, 600, 70], [89, 59, 89.5, 60], [0, 0, 1, 60], [5, 5, 6, 6], [80, 1, 4000, 50]])
    names = ["", "x" * 500, "ümläut \U0001f600", "d", "e"]
    sheet = draw_regions(encoder, image, boxes, names)
    assert draw_regions(encoder, image, boxes.repeat(9, 1), names * 9).size == sheet.size
    assert draw_regions(encoder, image, boxes[:0], []).size[1] < sheet.size[1]
    with pytest.raises(ValueError, match="names: expected one for each of the 5 boxes; got 4"):
        draw_regions(encoder, image, boxes, names[:4])
