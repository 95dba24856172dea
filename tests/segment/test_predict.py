import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.data.formats.mask_values import read_raw
from sppnet.data.images import ImageSource, load_image
from sppnet.errors import ImageError
from sppnet.inference import memory as inference_memory
from sppnet.inference.results import Failure
from sppnet.segment import memory as segment_memory
from sppnet.segment import predict
from sppnet.segment.model import Segmenter
from sppnet.segment.options import View
from sppnet.segment.predict import SegmentationResult, output_stems, segment_files
from sppnet.segment.views import pixel_probabilities
from tests.helpers.tiny_segmenter import smooth_image, tiny_segmenter


def segment_file(
    model: Segmenter, path: Path, stem: Path | None, write: tuple[str, ...] = ("palette", "overlay"), *, view: View
) -> tuple[SegmentationResult, dict[str, str]]:
    (outcome,) = segment_files(model, [path], [stem], write, view)
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def test_result_is_the_most_probable_class_of_each_pixel(trained_model: Segmenter, dataset: Path) -> None:
    path = dataset / "val" / "val_0.png"
    (result,) = trained_model.predict(path)
    assert isinstance(result, SegmentationResult)
    probabilities = pixel_probabilities(trained_model, load_image(path))
    assert result.labels.dtype == np.uint8
    assert np.array_equal(result.labels, probabilities.argmax(0).numpy())
    assert (result.source, result.size, result.classes) == (str(path), (64, 80), trained_model.config.classes)
    content = json.loads(json.dumps(result.to_dict()))
    assert content.keys() == {"source", "size", "classes"}
    shares = [item["share"] for item in content["classes"]]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert content["classes"][0] == {"label": "background", "share": float((result.labels == 0).mean())}
    assert repr(result).startswith(f"SegmentationResult({str(path)!r}, 64 x 80: background ")


def test_absent_classes_are_omitted_and_the_overlay_shows_the_labels() -> None:
    labels = np.zeros((30, 40), np.uint8)
    labels[:, 10:] = 2
    result = SegmentationResult("a", (30, 40), labels, ("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    assert result.to_dict()["classes"] == [{"label": "c", "share": 0.75}, {"label": "a", "share": 0.25}]
    assert repr(result) == "SegmentationResult('a', 30 x 40: c 75.0%, a 25.0%)"
    drawn = result.draw(Image.new("RGB", (40, 30), (100, 100, 100)))
    assert (drawn.getpixel((5, 5)), drawn.getpixel((20, 5))) == ((185, 45, 45), (45, 45, 185))


def test_all_forms_of_an_image_give_the_same_labels(tmp_path: Path) -> None:
    model, image = tiny_segmenter(gain=1.5).train(), smooth_image(60, 90)
    file = tmp_path / "a.png"
    image.save(file)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    images: list[ImageSource] = [file, str(file), file.read_bytes(), image, np.asarray(image), tensor, tensor / 255]
    results = model.predict(images)
    assert model.training
    assert [result.source for result in results] == [str(file), str(file), *(f"image {index}" for index in range(2, 7))]
    for source, result in zip(images, results, strict=True):
        (single,) = model.predict(source)
        assert isinstance(result, SegmentationResult)
        assert isinstance(single, SegmentationResult)
        assert np.array_equal(result.labels, single.labels)
        assert result.shares == results[0].shares  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1)])
def test_segments_images_of_few_pixels(size: tuple[int, int]) -> None:
    for view in (None, View(scale_factors=(0.1, 2.0), flip=True), View(memory=10**12), View(tile=192, overlap=32)):
        (result,) = tiny_segmenter().predict(Image.new("RGB", size[::-1]), view=view)
        assert isinstance(result, SegmentationResult)
        assert (result.size, result.labels.shape) == (size, size)
        result.draw(Image.new("RGB", size[::-1]))


def test_unusable_images_are_raised_or_become_failures(tmp_path: Path) -> None:
    model, bad = tiny_segmenter(), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"bad\.png: not an image"):
        model.predict([smooth_image(8, 8), bad])
    good, failure = model.predict([smooth_image(8, 8), bad], on_error="skip")
    assert isinstance(good, SegmentationResult)
    assert isinstance(failure, Failure)
    assert (failure.source, failure.error.path) == (str(bad), str(bad))
    (failure,) = model.predict(b"no image", on_error="skip")
    assert failure.to_dict() == {"source": "image 0", "failure": "not an image: the file begins with 'no'"}


@pytest.mark.usefixtures("unchecked")
def test_rejects_illegal_arguments() -> None:
    with pytest.raises(ValueError, match="on_error: expected one of raise, skip, got 'skp'; did you mean 'skip'"):
        tiny_segmenter().predict([], on_error="skp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="context: expected a model whose ASPP has an image-level branch"):
        tiny_segmenter(head="pspnet").predict(smooth_image(8, 8), view=View(global_context=True), on_error="skip")


def test_result_files_replace_neither_images_nor_each_other(tmp_path: Path) -> None:
    names = ["a.png", "b/a.jpg", "a_overlay.jpg", "c.jpg"]
    stems = output_stems([tmp_path / name for name in names], tmp_path)
    assert [stem.name for stem in stems] == ["a-2", "a-3", "a_overlay", "c"]


@pytest.mark.parametrize("view", [View(), View(tile=64, overlap=16)])
def test_writes_palette_overlay_and_probabilities(
    view: View, trained_model: Segmenter, dataset: Path, tmp_path: Path
) -> None:
    image, stem = dataset / "val" / "val_0.png", tmp_path / "out" / "a"
    result, files = segment_file(trained_model, image, stem, ("overlay", "palette", "probabilities"), view=view)
    assert files == {
        "palette": f"{stem}.png",
        "overlay": f"{stem}_overlay.png",
        "probabilities": f"{stem}_probabilities.npy",
    }
    assert sorted(str(file) for file in stem.parent.iterdir()) == sorted(files.values())
    assert np.array_equal(read_raw(files["palette"]), result.labels)
    with Image.open(files["palette"]) as mask, Image.open(files["overlay"]) as picture:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(picture), np.asarray(result.draw(load_image(image))))
    probabilities = np.load(files["probabilities"])
    assert probabilities.dtype == np.float16
    assert (probabilities.argmax(0) == result.labels).mean() > 0.99
    if view == View():
        expected = pixel_probabilities(trained_model, load_image(image)).numpy().astype(np.float16)
        assert np.array_equal(probabilities, expected)


def test_tiled_prediction_matches_the_whole_image(trained_model: Segmenter, dataset: Path, tmp_path: Path) -> None:
    image, view = dataset / "val" / "val_0.png", View(tile=64, overlap=16)
    (whole,), (tiled,) = trained_model.predict(image), trained_model.predict(image, view=view)
    assert isinstance(whole, SegmentationResult)
    assert isinstance(tiled, SegmentationResult)
    assert 0.9 < (whole.labels == tiled.labels).mean() < 1
    assert tiled.labels.dtype == np.uint8
    streamed, files = segment_file(trained_model, image, None, view=view)
    assert np.array_equal(streamed.labels, tiled.labels)
    assert files == {}


def test_labels_on_disk_survive_until_the_results_are_written(
    trained_model: Segmenter, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    image, view = dataset / "val" / "val_0.png", View(tile=64, overlap=16)
    with monkeypatch.context() as patch:
        patch.setattr(predict, "save_png", fail)
        with pytest.raises(KeyboardInterrupt):
            segment_file(trained_model, image, tmp_path / "a", view=view)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a_labels.npy", "a_labels.npy.json"]
    monkeypatch.setattr("sppnet.segment.tiles.blend_tiles", fail)  # no tile is computed again
    segment_file(trained_model, image, tmp_path / "a", view=view)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "a_overlay.png"]


@pytest.mark.parametrize("view", [View(), View(memory=10**12), View(scale_factors=(0.5, 1.0), flip=True)])
def test_labels_are_identical_for_any_number_of_threads(view: View, tmp_path: Path) -> None:
    model, images = tiny_segmenter(), [smooth_image(40 + 7 * number, 60) for number in range(5)]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(model.predict(images, view=view))
    torch.set_num_threads(before)
    for single, several in zip(*results, strict=True):
        assert isinstance(single, SegmentationResult)
        assert isinstance(several, SegmentationResult)
        assert np.array_equal(single.labels, several.labels)


def test_image_beyond_the_memory_limit_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (inference_memory, segment_memory):
        monkeypatch.setattr(module, "settled_bytes", lambda: 10**9)
    huge, model, view = tmp_path / "huge.png", tiny_segmenter(), View(memory=1_700_000_000)
    Image.new("L", (9000, 8000)).save(huge)
    failure, result = model.predict([huge, smooth_image(8, 8)], view=view, on_error="skip")
    assert isinstance(failure, Failure)
    assert isinstance(result, SegmentationResult)
    message = r"huge\.png: memory: .*huge\.png, 8000 x 9000 pixels \(height x width\), got 1700MB"
    with pytest.raises(ImageError, match=message):
        raise failure.error
    with pytest.raises(ImageError, match=message):
        segment_file(model, huge, None, view=view)
