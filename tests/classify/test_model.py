"""Classifier.predict: accepted kinds of images, dtypes, and copies of the model."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sppnet import Classifier, ClassifierConfig
from sppnet.classify.model import create_classifier
from sppnet.classify.predict import predict_images
from tests.helpers.classifiers import build_classifier


@pytest.fixture(scope="module")
def small() -> Classifier:
    return build_classifier()


@pytest.fixture(scope="module")
def embedded() -> Classifier:
    torch.manual_seed(0)
    return create_classifier(ClassifierConfig(("ash", "birch", "cedar"))).eval()


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)


def test_all_kinds_of_sources_give_the_same_prediction(embedded: Classifier, tmp_path: Path) -> None:
    pixels = noise(45, 70)
    image = Image.fromarray(pixels)
    file = tmp_path / "image.png"
    image.save(file)
    with Image.open(file) as opened:
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        sources: list[Any] = [file, str(file), file.read_bytes(), image, opened, pixels, tensor, tensor.double() / 255]
        results = embedded.predict(sources)
        singles = [result for source in sources for result in embedded.predict(source)]
    assert [result.top for result in results] == [results[0].top] * 8
    assert [single.top for single in singles] == [results[0].top] * 8
    names = [str(file), str(file), "image 2", "image 3", str(file), "image 5", "image 6", "image 7"]
    assert [result.source for result in results] == names


def test_accepts_one_image_or_any_iterable(embedded: Classifier) -> None:
    images = [noise(40, 50), noise(50, 40)]
    expected = embedded.predict(images)
    assert len(expected) == 2
    assert embedded.predict(tuple(images)) == embedded.predict(image for image in images) == expected
    assert embedded.predict(images[0]) == embedded.predict(images[:1]) == expected[:1]
    assert embedded.predict([]) == list(predict_images(embedded, [])) == []


def test_repeated_image_gives_equal_predictions_with_different_names(embedded: Classifier) -> None:
    image = noise(40, 50)
    first, second = embedded.predict([image, image])
    assert first.top == second.top
    assert (first.source, second.source) == ("image 0", "image 1")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_predicts_with_weights_of_other_dtypes(small: Classifier, dtype: torch.dtype) -> None:
    model = copy.deepcopy(small).to(dtype)
    assert model.dtype == model(torch.randn(1, 3, 64, 64, dtype=dtype)).dtype == dtype
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for views in ("full", "10"):
        (prediction,), (expected,) = model.predict(pixels, views=views), small.predict(pixels, views=views)
        # bfloat16 has 8 bits of precision.
        assert dict(prediction.top) == pytest.approx(dict(expected.top), abs=1e-5 if dtype == torch.float64 else 0.05)


def test_copies_and_pickles_give_the_same_logits(small: Classifier) -> None:
    x = torch.randn(1, 3, 50, 60)
    for duplicate in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert duplicate.config == small.config
        assert duplicate.backbone.geometry == small.backbone.geometry
        assert torch.equal(duplicate(x), small(x))
