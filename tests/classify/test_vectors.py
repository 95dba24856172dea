"""Cached vectors: equality with the network, resuming, and cache keys."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sppnet import Classifier, Resize
from sppnet.classify.vectors import compute_vectors
from sppnet.data.formats.classification import Sample, read_classification
from sppnet.data.images import load_image, to_tensor
from tests.helpers.classifiers import build_classifier
from tests.helpers.images import write_classes

NATIVE = Resize("native")


@pytest.fixture(scope="module")
def model() -> Classifier:
    return build_classifier(levels=(2, 1))


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    """Nine images; the second one is unreadable."""
    samples = read_classification(write_classes(tmp_path / "data", 3)).samples
    samples[1].path.write_bytes(b"<html>")
    return samples


def test_vectors_and_labels_match_the_readable_images(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    vectors = compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
    readable = [sample for number, sample in enumerate(samples) if number != 1]
    images = [to_tensor(load_image(sample.path), model.backbone.mean, model.backbone.std) for sample in readable]
    with torch.inference_mode():
        expected = torch.cat([model.vectors(image[None]) for image in images])
    torch.testing.assert_close(vectors.data.float(), expected, rtol=2e-3, atol=1e-3)
    assert vectors.labels.tolist() == [sample.label for sample in readable]
    assert [failure.path for failure in vectors.failures] == [str(samples[1].path)]


@pytest.fixture
def passes(model: Classifier) -> Iterator[list[int]]:
    """Number of images of each forward pass."""
    sizes: list[int] = []
    hook = model.backbone.register_forward_hook(lambda _module, inputs, _map: sizes.append(len(inputs[0])))
    yield sizes
    hook.remove()


def test_only_missing_vectors_are_computed(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path, passes: list[int]
) -> None:
    first = compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert passes == [1] * len(files) == [1] * 8
    for file in files[3:5]:
        file.unlink()
    files[6].write_bytes(b"damaged")
    passes.clear()
    second = compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
    assert passes == [1] * 3
    assert torch.equal(first.data, second.data)
    assert torch.equal(first.labels, second.labels)
    assert [str(failure) for failure in first.failures] == [str(failure) for failure in second.failures]


@pytest.mark.parametrize("threads", [2, 5])
def test_vectors_do_not_depend_on_the_number_of_threads(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path, threads: int
) -> None:
    before = torch.get_num_threads()
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        results.append(compute_vectors(model, samples, NATIVE, tmp_path / f"cache {count}", "test"))
    torch.set_num_threads(before)
    assert torch.equal(results[0].data, results[1].data)
    assert torch.equal(results[0].labels, results[1].labels)


def test_the_cache_is_not_filled_beyond_its_limit(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    size = 2 * 5 * model.backbone.channels
    compute_vectors(model, samples[:3], NATIVE, tmp_path / "cache", "test", limit=3 * size)
    with pytest.raises(ValueError, match=r"cache: expected room for about .* \(7 images of "):
        compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test", limit=6 * size)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test", limit=20 * size)


def test_missing_and_dangling_files_are_failures(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    samples[0].path.unlink()
    samples[4].path.unlink()
    samples[4].path.symlink_to(tmp_path / "nowhere.png")
    vectors = compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
    assert [Path(failure.path).name for failure in vectors.failures] == ["0.png", "1.png", "1.png"]
    assert len(vectors.data) == 6


def test_renamed_and_touched_images_keep_their_vectors(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path, passes: list[int]
) -> None:
    first = compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
    passes.clear()
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = [Sample(tmp_path / "moved" / sample.path.relative_to(tmp_path / "data"), 0) for sample in samples]
    os.utime(moved[0].path, (0, 0))
    again = compute_vectors(model, moved, NATIVE, tmp_path / "cache", "test")
    assert not passes
    assert torch.equal(first.data, again.data)
    assert again.labels.tolist() == [0] * 8
    moved[0].path.write_bytes(moved[3].path.read_bytes())
    assert torch.equal(compute_vectors(model, moved, NATIVE, tmp_path / "cache", "test").data[0], first.data[2])
    assert not passes


def test_runs_that_share_a_cache_write_different_temporary_files(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start another run with the same vectors when the first is about to rename its first vector."""
    replace, paths = Path.replace, []

    def replace_late(path: Path, target: Path) -> Path:
        paths.append(path)
        if sum(path.suffix == ".safetensors" for path in paths) == 1 and path.suffix == ".safetensors":
            compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_late)
    vectors = compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
    assert len(vectors.data) == 8
    assert len(set(paths)) == len(paths) >= 16


def test_changes_of_network_and_policy_start_another_cache(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    compute_vectors(model, samples, NATIVE, cache, "test")
    compute_vectors(build_classifier(levels=(1,)), samples, NATIVE, cache, "test")
    compute_vectors(model, samples, Resize("warp", 48), cache, "test")
    assert len(list(cache.iterdir())) == 3
