"""Prediction of mixed sizes: order, equal answers, every kind of source, and files that cannot be read."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import sppnet.classify.predict
from sppnet import Classifier, ClassifierConfig, ImageError, Prediction, Resize, create_backbone
from sppnet.classify.predict import image_vectors, predict_images
from sppnet.data.images import to_tensor
from sppnet.inference.results import Failure

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def small() -> Classifier:
    """Untrained but for the embedded backbone, which tells images apart."""
    torch.manual_seed(0)
    classes = tuple(f"class {index}" for index in range(7))
    return Classifier(ClassifierConfig(classes, max_pixels=100_000), create_backbone()).eval()


@pytest.fixture(scope="module")
def zf5() -> Classifier:
    return Classifier(ClassifierConfig(("a", "b"), "zf5", levels=(1,)), create_backbone("zf5"))


def noise(height: int, width: int) -> Pixels:
    coarse = Image.fromarray(np.random.randint(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def answers(results: list[Prediction] | list[Prediction | Failure]) -> torch.Tensor:
    """Probabilities of the five likeliest classes, in the order of the classes' names."""
    tops = [dict.fromkeys(range(7), 0.0) for _ in results]
    for top, result in zip(tops, results, strict=True):
        assert isinstance(result, Prediction)
        top.update({int(name.removeprefix("class ")): score for name, score in result.top})
    return torch.tensor([list(top.values()) for top in tops])


def test_an_answer_does_not_depend_on_the_other_images(small: Classifier) -> None:
    """33 images of 30 sizes: alone, in batches of 33 and of 5, and in another order."""
    rng = np.random.default_rng(0)
    images = [noise(*rng.integers(20, 90, 2)) for _ in range(29)]
    images += [noise(64, 48) for _ in range(4)]
    alone = torch.cat([answers(small.predict(image)) for image in images])
    for batch in (33, 5):
        together = answers(list(predict_images(small, images, batch=batch)))
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-7)
    order = rng.permutation(33)
    shuffled = answers(small.predict([images[i] for i in order]))
    torch.testing.assert_close(shuffled, alone[torch.from_numpy(order)], rtol=1e-5, atol=1e-7)
    assert len({tuple(row) for row in alone.tolist()}) == 33, "the images must differ in their answers"


def test_logits_of_mixed_sizes_are_those_of_each_image_alone(small: Classifier) -> None:
    images = [Image.fromarray(noise(height, width)) for height, width in ((40, 60), (60, 40), (40, 60), (33, 80))]
    backbone = small.backbone
    with torch.inference_mode():
        vectors = image_vectors(small, images)
        alone = [small.vectors(to_tensor(image, backbone.mean, backbone.std)[None]) for image in images]
        torch.testing.assert_close(small.head(vectors), small.head(torch.cat(alone)), rtol=1e-5, atol=1e-5)


def test_large_images_of_one_size_go_a_few_at_a_time(small: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sppnet.classify.predict, "_PASS_PIXELS", 2 * 50 * 60)
    images = [noise(50, 60) for _ in range(5)] + [noise(150, 100)]
    expected = torch.cat([answers(small.predict(image)) for image in images])
    passes: list[int] = []
    hook = small.backbone.register_forward_hook(lambda _module, inputs, _map: passes.append(len(inputs[0])))
    found = answers(small.predict(images))
    hook.remove()
    assert passes == [2, 2, 1, 1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_fields_of_a_prediction(small: Classifier) -> None:
    (prediction,) = small.predict(noise(50, 80))
    labels, scores = zip(*prediction.top, strict=True)
    assert (prediction.label, prediction.score) == prediction.top[0]
    assert len(set(labels)) == 5
    assert set(labels) <= set(small.config.classes)
    assert list(scores) == sorted(scores, reverse=True)
    assert 0 < sum(scores) <= 1
    assert prediction.size == prediction.network_size == (50, 80)


def test_every_kind_of_source_gives_the_same(small: Classifier, tmp_path: Path) -> None:
    pixels = noise(45, 70)
    image = Image.fromarray(pixels)
    file = tmp_path / "image.png"
    image.save(file)
    with Image.open(file) as opened:
        sources: list[Any] = [file, str(file), file.read_bytes(), image, opened, pixels, pixels.copy("F")]
        results = small.predict(sources)
        singles = [result for source in sources for result in small.predict(source)]
    assert [result.top for result in results] == [results[0].top] * 7
    assert [single.top for single in singles] == [results[0].top] * 7
    named = [str(file), str(file), "image 2", "image 3", str(file), "image 5", "image 6"]
    assert [result.source for result in results] == named


def test_one_image_a_list_and_any_iterable(small: Classifier) -> None:
    images = [noise(40, 50), noise(50, 40)]
    expected = small.predict(images)
    assert len(expected) == 2
    assert small.predict(tuple(images)) == small.predict(image for image in images) == expected
    assert small.predict(images[0]) == small.predict(images[:1]) == expected[:1]
    assert small.predict([]) == list(predict_images(small, [])) == []


def test_the_same_image_twice(small: Classifier) -> None:
    image = noise(40, 50)
    first, second = small.predict([image, image])
    assert first.top == second.top
    assert (first.source, second.source) == ("image 0", "image 1")


def test_an_array_s_flipped_view_is_another_image(small: Classifier) -> None:
    pixels = noise(40, 50)
    flipped, copied = small.predict([pixels[:, ::-1], np.ascontiguousarray(pixels[:, ::-1])])
    assert flipped.top == copied.top != small.predict(pixels)[0].top


@pytest.mark.parametrize(("orientation", "turn"), [(3, 180), (6, 270), (8, 90)])
def test_a_turned_photograph_gives_the_upright_answer(
    small: Classifier, tmp_path: Path, orientation: int, turn: int
) -> None:
    upright = Image.fromarray(noise(40, 66))
    exif = Image.Exif()
    exif[0x0112] = orientation
    # What the camera stores comes upright when it is turned as the tag says.
    upright.rotate(-turn, expand=True).save(tmp_path / "turned.png", exif=exif)
    (found,), (expected,) = small.predict(tmp_path / "turned.png"), small.predict(upright)
    assert found.size == (40, 66)
    assert found.top == expected.top


def test_bad_files_are_failures_in_their_place(small: Classifier, tmp_path: Path) -> None:
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


def test_an_array_that_is_no_image_is_named_by_its_number(small: Classifier) -> None:
    results = list(predict_images(small, [noise(30, 30), noise(30, 30) / 255, b"<html>"]))
    assert [str(result.error)[:20] for result in results[1:] if isinstance(result, Failure)] == [
        "image 1: must be uin",
        "image 2: not an imag",
    ]
    with pytest.raises(ImageError, match="image 0: must be uint8"):
        small.predict(np.stack([noise(30, 30)] * 2))


def test_an_image_too_small_for_the_network_is_a_failure(zf5: Classifier) -> None:
    images = [noise(40, 50), noise(30, 50), noise(50, 40)]
    first, failure, last = predict_images(zf5, images)
    assert isinstance(first, Prediction)
    assert isinstance(last, Prediction)
    assert isinstance(failure, Failure)
    assert str(failure.error) == "image 1: 30 x 50 pixels are too few for zf5; the smallest size is 31 x 31"
    for resize in ("warp:64", "shorter-side:31"):
        assert len(zf5.predict(images, resize=resize)) == 3
    assert len(zf5.predict(images[1], views="10")) == 1, "views enlarge it"


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 4000), (4000, 3)])
def test_tiny_and_long_images(small: Classifier, size: tuple[int, int]) -> None:
    (prediction,) = small.predict(np.full((*size, 3), 90, np.uint8))
    assert prediction.size == prediction.network_size == size
    assert np.isfinite(prediction.score)


def test_views_of_a_long_thin_image_are_a_failure(zf5: Classifier) -> None:
    failure, other = predict_images(zf5, [noise(3, 31), noise(300, 300)], views="10")
    assert isinstance(failure, Failure)
    assert failure.error.reason.startswith("3 x 31 pixels are too long and thin for views")
    assert isinstance(other, Prediction)


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
def test_sizes(small: Classifier, resize: Resize | str | None, network_size: tuple[int, int]) -> None:
    seen: list[tuple[int, ...]] = []
    hook = small.backbone.register_forward_hook(lambda _module, inputs, _map: seen.append(tuple(inputs[0].shape)))
    (prediction,) = small.predict(noise(40, 100), resize=resize)
    hook.remove()
    assert prediction.size == (40, 100)
    assert prediction.network_size == network_size
    assert seen == [(1, 3, *network_size)]


def test_views_are_an_average_of_their_own(small: Classifier) -> None:
    image = Image.fromarray(noise(224, 224))
    full, ten = small.predict(image)[0], small.predict(image, views="10")[0]
    assert full.top != ten.top
    assert 0 < sum(score for _, score in ten.top) <= 1
    assert small.predict([image, image], views="10")[1].top == ten.top


def test_a_model_in_training_mode_predicts_in_evaluation_mode_and_goes_back(small: Classifier) -> None:
    image = noise(40, 50)
    expected = small.predict(image)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    small.train()
    assert small.predict(image) == expected
    assert small.training
    small.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


def test_images_are_read_a_batch_at_a_time(small: Classifier) -> None:
    read = 0

    def images() -> Iterator[Pixels]:
        nonlocal read
        for _ in range(7):
            read += 1
            yield noise(20, 20)

    results = predict_images(small, images(), batch=3)
    assert read == 0
    first = next(results)
    assert read == 3
    assert [result.source for result in (first, *results)] == [f"image {number}" for number in range(7)]


def test_wrong_options_are_named(small: Classifier, unchecked: None) -> None:
    image = noise(20, 20)
    with pytest.raises(ValueError, match=r"views: expected one of full, 10, 18, 96, 96\+2; got '12'"):
        small.predict(image, views="12")
    with pytest.raises(ValueError, match=r"resize policy must be one of .*, got 'wrap'; did you mean warp"):
        small.predict(image, resize="wrap")
    with pytest.raises(ValueError, match="batch: expected at least 1 image; got 0"):
        list(predict_images(small, [image], batch=0))
