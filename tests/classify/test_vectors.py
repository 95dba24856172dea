"""Cached vectors: equality with the network, resuming, and cache keys."""

import os
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
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Sample, ...]:
    """Nine images in shards of two; the second one is unreadable."""
    monkeypatch.setattr("sppnet.classify.vectors._SHARD", 2)
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


def test_only_missing_shards_are_computed(model: Classifier, samples: tuple[Sample, ...], tmp_path: Path) -> None:
    first = compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
    shards = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(shards) == 5
    shards[3].unlink()
    sizes: list[int] = []
    hook = model.backbone.register_forward_hook(lambda _module, inputs, _map: sizes.append(len(inputs[0])))
    second = compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
    hook.remove()
    assert sum(sizes) == 2
    assert torch.equal(first.data, second.data)
    assert torch.equal(first.labels, second.labels)
    assert [str(failure) for failure in first.failures] == [str(failure) for failure in second.failures]


def test_missing_and_dangling_files_are_failures(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    samples[0].path.unlink()
    samples[4].path.unlink()
    samples[4].path.symlink_to(tmp_path / "nowhere.png")
    vectors = compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
    assert [Path(failure.path).name for failure in vectors.failures] == ["0.png", "1.png", "1.png"]
    assert len(vectors.data) == 6


def test_cache_does_not_depend_on_how_paths_are_written(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("data")
    for root in (Path("data"), tmp_path / "link", tmp_path / "data" / ".." / "data"):
        same = [Sample(root / sample.path.relative_to(tmp_path / "data"), sample.label) for sample in samples]
        compute_vectors(model, same, NATIVE, tmp_path / "cache", "test")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_runs_that_share_a_cache_write_different_temporary_files(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start another run with the same vectors when the first is about to rename its first file."""
    replace, paths = Path.replace, []

    def replace_late(path: Path, target: Path) -> Path:
        paths.append(path)
        if len(paths) == 1:
            compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_late)
    vectors = compute_vectors(model, samples, NATIVE, tmp_path / "cache", "test")
    assert len(vectors.data) == 8
    assert len(set(paths)) == len(paths) == 10


def test_changes_of_network_policy_and_files_start_another_cache(
    model: Classifier, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    compute_vectors(model, samples, NATIVE, cache, "test")
    compute_vectors(build_classifier(levels=(1,)), samples, NATIVE, cache, "test")
    compute_vectors(model, samples, Resize("warp", 48), cache, "test")
    os.utime(samples[0].path, (0, 0))
    compute_vectors(model, samples, NATIVE, cache, "test")
    assert len(list(cache.iterdir())) == 4
