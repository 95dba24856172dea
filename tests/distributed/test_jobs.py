"""Jobs of Ray workers, run without Ray: loading of runs from URLs, and the files that the jobs write."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet import Classifier, ClassifierConfig, Detector, DetectorConfig, RegionEncoder, create_backbone
from sppnet.data.images import load_image
from sppnet.distributed.jobs import FeaturesJob, PredictJob, classify, load_remote
from sppnet.features.shards import read_metadata, read_shard
from sppnet.training.run import save

SIZES = ((60, 90), (80, 50), (70, 70))
NAMES = ["0.png", "missing.png", "1.png", "2.png"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    config = ClassifierConfig(("a", "b", "c"), "test_resnet", levels=(2, 1))
    return Classifier(config, create_backbone("test_resnet", None, None)).eval()


def test_load_run_reads_urls(classifier: Classifier, tmp_path: Path) -> None:
    save(classifier, tmp_path / "run")
    model = load_remote(f"file://{tmp_path}/run")
    x = torch.randn(1, 3, 40, 50)
    assert torch.equal(model(x), classifier(x))
    with pytest.raises(ValueError, match=r"run: expected a folder written by `sppnet train`, got file://.*none;"):
        load_remote(f"file://{tmp_path}/none")


def test_predict_job_writes_predictions_and_failures_in_order(
    classifier: Classifier, images: Path, tmp_path: Path
) -> None:
    job = PredictJob(classifier, partial(classify, resize=None, views="full"), 2, tmp_path, images)
    job.start("cpu")
    failures = json.loads(job.run(json.dumps({"file": "part.jsonl", "names": NAMES})))
    assert [name for name, _ in failures] == ["missing.png"]
    lines = [json.loads(line) for line in (tmp_path / "part.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == NAMES
    assert lines.pop(1) == {"source": "missing.png", "failure": failures[0][1]}
    expected = classifier.predict([images / line["source"] for line in lines])
    assert lines == [
        result.to_dict() | {"source": line["source"]} for line, result in zip(lines, expected, strict=True)
    ]


def test_detectors_report_objects_above_the_minimum_score(images: Path, tmp_path: Path) -> None:
    config = DetectorConfig(("cat", "dog"), "spp", "zf5", levels=(1,), scales=(64,), proposals="grid", windows=20)
    model = Detector(config, create_backbone("zf5", None, None)).eval()
    with torch.no_grad():
        model.score.weight *= 0
        model.score.bias.copy_(torch.tensor([0.8, 0.2]))
    labels = []
    for min_score in (0.1, 0.5, 0.9):
        predict = partial(Detector.predict, min_score=min_score, on_error="skip")
        PredictJob(model, predict, 2, tmp_path, images).run(json.dumps({"file": "part.jsonl", "names": ["0.png"]}))
        content = json.loads((tmp_path / "part.jsonl").read_text())
        assert (content["source"], content["size"]) == ("0.png", [60, 90])
        labels.append({detection["label"] for detection in content["objects"]})
    assert labels == [{"cat", "dog"}, {"cat"}, set()]


def test_unreadable_urls_are_failures_of_their_names(classifier: Classifier, images: Path, tmp_path: Path) -> None:
    job = PredictJob(classifier, partial(classify, resize=None, views="full"), 3, tmp_path, Path())
    names = [f"file://{images}/none.png", f"file://{images}/1.png"]
    ((name, reason),) = json.loads(job.run(json.dumps({"file": "part.jsonl", "names": names})))
    failure, result = (json.loads(line) for line in (tmp_path / "part.jsonl").read_text().splitlines())
    assert failure == {"source": names[0], "failure": reason}
    assert name == names[0]
    assert result == classifier.predict(images / "1.png")[0].to_dict() | {"source": names[1]}


def test_features_job_writes_vectors_and_failures(images: Path, tmp_path: Path) -> None:
    encoder = RegionEncoder(create_backbone("zf5", None, None), (2, 1), (100,))
    job = FeaturesJob(encoder, "float32", images)
    job.start("cpu")
    boxes = [[0.0, 0.0, 40.0, 50.0], [10.0, 10.0, 45.0, 40.0]]
    pieces = [(name, name, boxes, [f"{name}-a", f"{name}-b"]) for name in ("1.png", "missing.png")]
    file = tmp_path / "vectors.safetensors"
    assert job.run(json.dumps({"file": str(file), "source": "digest", "pieces": pieces})) == ""
    shard, metadata = read_shard(file), read_metadata(file)
    assert (shard.images, shard.ids) == (("1.png",), ("1.png-a", "1.png-b"))
    with torch.inference_mode():
        expected = encoder.vectors(encoder.prepare(load_image(images / "1.png")), torch.tensor(boxes))
    torch.testing.assert_close(shard.vectors, expected)
    assert metadata is not None
    assert metadata["source"] == "digest"
    assert [name for name, _ in json.loads(metadata["failures"])] == ["missing.png"]
