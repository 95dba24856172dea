"""Prediction for images of mixed sizes: order, batch independence, resizing, views, and unreadable files."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageChops

import sppnet.classify.predict
from sppnet import ClassificationResult, Classifier, ClassifierConfig, ImageError, Resize, create_backbone
from sppnet.classify.predict import image_vectors, map_batches, predict_images
from sppnet.data.images import to_tensor
from sppnet.inference.results import Failure

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def small() -> Classifier:
    """Classifier with an untrained head; its trained backbone gives different vectors for different images."""
    torch.manual_seed(0)
    classes = tuple(f"class {index}" for index in range(7))
    return Classifier(ClassifierConfig(classes, max_pixels=100_000), create_backbone()).eval()


@pytest.fixture(scope="module")
def zf5() -> Classifier:
    return Classifier(ClassifierConfig(("a", "b"), "zf5", levels=(1,)), create_backbone("zf5"))


def noise(height: int, width: int) -> Pixels:
    coarse = Image.fromarray(np.random.randint(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def top_probabilities(results: list[ClassificationResult] | list[ClassificationResult | Failure]) -> torch.Tensor:
    """Return the probabilities of the five most probable classes in class order, and 0 for the others."""
    tops = [dict.fromkeys(range(7), 0.0) for _ in results]
    for top, result in zip(tops, results, strict=True):
        assert isinstance(result, ClassificationResult)
        top.update({int(name.removeprefix("class ")): score for name, score in result.top})
    return torch.tensor([list(top.values()) for top in tops])


def test_predictions_do_not_depend_on_batch_or_order(small: Classifier) -> None:
    rng = np.random.default_rng(0)
    images = [noise(*rng.integers(20, 90, 2)) for _ in range(29)]
    images += [noise(64, 48) for _ in range(4)]
    single = torch.cat([top_probabilities(small.predict(image)) for image in images])
    for batch in (33, 5):
        batched = top_probabilities(list(predict_images(small, images, batch=batch)))
        torch.testing.assert_close(batched, single, rtol=1e-5, atol=1e-7)
    order = rng.permutation(33)
    shuffled = top_probabilities(small.predict([images[i] for i in order]))
    torch.testing.assert_close(shuffled, single[torch.from_numpy(order)], rtol=1e-5, atol=1e-7)
    assert len({tuple(row) for row in single.tolist()}) == 33, "the images must differ in their predictions"


def test_predictions_are_bit_identical_for_any_number_of_threads(small: Classifier) -> None:
    images = [noise(64, 48) for _ in range(5)] + [noise(90, 70)]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append([result.top for result in small.predict(images)])
    results.append([small.predict(image)[0].top for image in images])
    torch.set_num_threads(before)
    assert all(result == results[0] for result in results)


def test_abandoned_predictions_restore_training_mode_after_the_running_images(small: Classifier) -> None:
    model = Classifier(small.config, small.backbone)
    model.train()
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    results = predict_images(model, [noise(400, 500) for _ in range(9)])
    next(results)
    assert not model.backbone.training
    results.close()  # type: ignore[attr-defined]
    torch.set_num_threads(before)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
    small.eval()


def test_logits_of_mixed_sizes_match_single_images(small: Classifier) -> None:
    images = [Image.fromarray(noise(height, width)) for height, width in ((40, 60), (60, 40), (40, 60), (33, 80))]
    backbone = small.backbone
    with torch.inference_mode():
        vectors = image_vectors(small, images)
        single = [small.vectors(to_tensor(image, backbone.mean, backbone.std)[None]) for image in images]
        torch.testing.assert_close(small.head(vectors), small.head(torch.cat(single)), rtol=1e-5, atol=1e-5)


def test_large_images_of_one_size_need_several_passes(small: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sppnet.classify.predict, "_PASS_PIXELS", 2 * 50 * 60)
    images = [Image.fromarray(noise(50, 60)) for _ in range(5)] + [Image.fromarray(noise(150, 100))]
    passes: list[int] = []
    with torch.inference_mode():
        expected = torch.cat([image_vectors(small, [image]) for image in images])
        hook = small.backbone.register_forward_hook(lambda _module, inputs, _map: passes.append(len(inputs[0])))
        vectors = image_vectors(small, images)
    hook.remove()
    assert passes == [2, 2, 1, 1]
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)


def test_prediction_fields_are_consistent(small: Classifier) -> None:
    (prediction,) = small.predict(noise(50, 80))
    labels, scores = zip(*prediction.top, strict=True)
    assert (prediction.label, prediction.score) == prediction.top[0]
    assert len(set(labels)) == 5
    assert set(labels) <= set(small.config.classes)
    assert list(scores) == sorted(scores, reverse=True)
    assert 0 < sum(scores) <= 1
    assert prediction.size == prediction.network_size == (50, 80)


def test_result_converts_to_json_and_text(small: Classifier) -> None:
    (result,) = small.predict(noise(50, 80))
    content = json.loads(json.dumps(result.to_dict()))
    assert list(content) == ["source", "size", "label", "score", "top", "network_size"]
    assert content["source"] == "image 0"
    assert content["size"] == content["network_size"] == [50, 80]
    assert [(entry["label"], entry["score"]) for entry in content["top"]] == list(result.top)
    assert (content["label"], content["score"]) == result.top[0]
    start = f"ClassificationResult('image 0', 50 x 80: {result.label} {result.score:.3f}, "
    assert repr(result).startswith(start)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (300, 500), (2000, 90)])
def test_drawing_writes_on_a_copy_of_the_image(small: Classifier, size: tuple[int, int]) -> None:
    image = Image.new("RGB", (size[1], size[0]), "gray")
    (result,) = small.predict(image)
    drawn = result.draw(image)
    assert drawn.size == image.size
    assert drawn.mode == "RGB"
    assert len(image.getcolors(2) or ()) == 1, "the image is not modified"
    if min(size) > 1:
        left, top, right, bottom = ImageChops.difference(image, drawn).getbbox() or (0, 0, 0, 0)
        assert right > left
        assert bottom > top
        assert right < image.width, "the text fits into the image"
        assert bottom < image.height


def test_flipped_view_of_an_array_is_read_in_its_order(small: Classifier) -> None:
    pixels = noise(40, 50)
    flipped, copied = small.predict([pixels[:, ::-1], np.ascontiguousarray(pixels[:, ::-1])])
    assert flipped.top == copied.top != small.predict(pixels)[0].top


@pytest.mark.parametrize(("orientation", "angle"), [(3, 180), (6, 270), (8, 90)])
def test_exif_orientation_is_applied(small: Classifier, tmp_path: Path, orientation: int, angle: int) -> None:
    upright = Image.fromarray(noise(40, 66))
    exif = Image.Exif()
    exif[0x0112] = orientation
    # The stored image becomes upright when rotated as the tag says.
    upright.rotate(-angle, expand=True).save(tmp_path / "rotated.png", exif=exif)
    (prediction,), (expected,) = small.predict(tmp_path / "rotated.png"), small.predict(upright)
    assert prediction.size == (40, 66)
    assert prediction.top == expected.top


def test_unreadable_files_are_failures_in_order(small: Classifier, tmp_path: Path) -> None:
    contents: dict[str, bytes] = {"empty.jpg": b"", "page.png": b"<html>no image</html>"}
    for number in range(5):
        buffer = io.BytesIO()
        Image.fromarray(noise(30 + number, 40)).save(buffer, "PNG")
        contents[f"good {number}.png"] = buffer.getvalue()
    contents["cut.png"] = contents["good 0.png"][:200]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "missing.png", tmp_path]
    reasons = {
        "cut.png": "truncated",
        "empty.jpg": "file is empty",
        "page.png": "not an image",
        "missing.png": "no such file",
        tmp_path.name: "a folder",
    }
    for batch in (1, 4, 32):
        results = list(predict_images(small, paths, batch=batch))
        assert [result.source for result in results] == [str(path) for path in paths]
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, Failure):
                assert reasons[path.name] in result.error.reason
                assert result.error.path == str(path)
            else:
                assert path.name.startswith("good")
        assert sum(isinstance(result, Failure) for result in results) == 5
    with pytest.raises(ImageError, match=r"cut\.png: file is truncated"):
        small.predict(paths)
    skipped = small.predict(paths, on_error="skip")
    assert sum(isinstance(result, Failure) for result in skipped) == 5
    assert [result.source for result in skipped] == [str(path) for path in paths]


def test_failures_name_unnamed_images_by_their_index(small: Classifier) -> None:
    results = list(predict_images(small, [noise(30, 30), noise(30, 30) / 255, b"<html>"]))
    assert [str(result.error)[:20] for result in results[1:] if isinstance(result, Failure)] == [
        "image 1: expected ui",
        "image 2: not an imag",
    ]
    with pytest.raises(ImageError, match="image 0: expected uint8"):
        small.predict(np.stack([noise(30, 30)] * 2))


def test_image_too_small_for_the_network_is_a_failure(zf5: Classifier) -> None:
    images = [noise(40, 50), noise(30, 50), noise(50, 40)]
    first, failure, last = predict_images(zf5, images)
    assert isinstance(first, ClassificationResult)
    assert isinstance(last, ClassificationResult)
    assert isinstance(failure, Failure)
    assert str(failure.error) == "image 1: 30 x 50 pixels is too small for zf5, which needs at least 31 x 31"
    for resize in ("warp:64", "shorter-side:31"):
        assert len(zf5.predict(images, resize=resize)) == 3
    assert len(zf5.predict(images[1], views="10")) == 1, "views enlarge the image"


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 4000), (4000, 3)])
def test_accepts_tiny_and_elongated_images(small: Classifier, size: tuple[int, int]) -> None:
    (prediction,) = small.predict(np.full((*size, 3), 90, np.uint8))
    assert prediction.size == prediction.network_size == size
    assert np.isfinite(prediction.score)


def test_views_of_an_elongated_image_are_a_failure(zf5: Classifier) -> None:
    failure, other = predict_images(zf5, [noise(3, 31), noise(300, 300)], views="10")
    assert isinstance(failure, Failure)
    assert failure.error.reason.startswith("3 x 31 pixels is too elongated for views")
    assert isinstance(other, ClassificationResult)


@pytest.mark.parametrize("resize", [None, "native", "shorter-side:100", Resize("shorter-side", 100)])
def test_sides_are_rounded_to_patches(resize: Resize | str | None) -> None:
    config = ClassifierConfig(("a", "b"), backbone="test_vit", levels=(1,))
    model = Classifier(config, create_backbone("test_vit", weights=None)).eval()
    (result,) = model.predict(Image.new("RGB", (123, 107)), resize=resize)
    assert result.network_size == ((112, 128) if resize in (None, "native") else (96, 112))


@pytest.mark.parametrize(
    ("resize", "network_size"),
    [
        (None, (40, 100)),
        ("native", (40, 100)),
        ("shorter-side", (200, 500)),  # 224 x 560 is above the model's max_pixels
        ("shorter-side:64", (64, 160)),
        ("square-min", (40, 40)),
        ("warp", (224, 224)),
        ("warp:48", (48, 48)),
        ("center-crop:56", (56, 56)),
        (Resize("native", max_pixels=1000), (20, 50)),
    ],
)
def test_images_are_resized_by_the_policy(
    small: Classifier, resize: Resize | str | None, network_size: tuple[int, int]
) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = small.backbone.register_forward_hook(lambda _module, inputs, _map: shapes.append(tuple(inputs[0].shape)))
    (prediction,) = small.predict(noise(40, 100), resize=resize)
    hook.remove()
    assert prediction.size == (40, 100)
    assert prediction.network_size == network_size
    assert shapes == [(1, 3, *network_size)]


def test_views_give_another_prediction_than_the_full_image(small: Classifier) -> None:
    image = Image.fromarray(noise(224, 224))
    full, ten = small.predict(image)[0], small.predict(image, views="10")[0]
    assert full.top != ten.top
    assert 0 < sum(score for _, score in ten.top) <= 1
    assert small.predict([image, image], views="10")[1].top == ten.top


def test_prediction_restores_training_mode(small: Classifier) -> None:
    image = noise(40, 50)
    expected = small.predict(image)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    small.train()
    assert small.predict(image) == expected
    assert small.training
    small.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


def test_images_are_read_shortly_before_they_are_processed(small: Classifier) -> None:
    read = 0

    def images() -> Iterator[Pixels]:
        nonlocal read
        for _ in range(7):
            read += 1
            yield noise(20, 20)

    results = predict_images(small, images())
    assert read == 0
    first = next(results)
    assert read <= 1 + 2 * torch.get_num_threads()
    assert [result.source for result in (first, *results)] == [f"image {number}" for number in range(7)]


@pytest.mark.parametrize(("device", "parts"), [("cpu", [1] * 7), ("meta", [3, 3, 1])])
def test_only_other_devices_process_batches(device: str, parts: list[int]) -> None:
    sizes: list[int] = []

    def run(items: list[int]) -> list[int]:
        sizes.append(len(items))
        assert torch.is_inference_mode_enabled()
        return [item + 1 for item in items]

    results = map_batches(lambda number: 10 * number, run, range(7), torch.device(device), 3)
    assert list(results) == [10 * number + 1 for number in range(7)]
    assert sizes == parts


def test_rejects_wrong_options(small: Classifier, unchecked: None) -> None:
    image = noise(20, 20)
    with pytest.raises(ValueError, match=r"views: expected one of full, 10, 18, 96, 96\+2, got '12'"):
        small.predict(image, views="12")
    with pytest.raises(ValueError, match=r"resize: expected one of .*, got 'wrap'; did you mean warp"):
        small.predict(image, resize="wrap")
    with pytest.raises(ValueError, match="on_error: expected one of raise, skip, got 'ignore'"):
        small.predict(image, on_error="ignore")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        list(predict_images(small, [image], batch=0))
