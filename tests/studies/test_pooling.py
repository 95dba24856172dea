"""Comparison of pooling methods: vectors of each method, splits, and results."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sppnet.backbones.backbone import create_backbone
from sppnet.classify.network import ClassifierConfig
from sppnet.classify.options import ClassifyOptions
from sppnet.cli.main import run
from sppnet.data.formats.classification import read_classification
from sppnet.studies.pooling import (
    MAXIMUM,
    MEAN,
    PYRAMID,
    STAGES,
    TOKEN,
    PooledMaps,
    PoolingComparison,
    PoolingScores,
    compare_pooling,
    verdict,
)
from tests.helpers.images import write_classes

OPTIONS = ClassifyOptions(backbone="test_resnet", weights="none", levels=(2, 1), stages=(2,))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "train", 7).parent


def network(name: str, stages: tuple[int, ...]) -> PooledMaps:
    config = ClassifierConfig(("a", "b"), name, levels=(2, 1), stages=stages)
    return PooledMaps(config, create_backbone(name, weights=None)).eval()


def test_vectors_of_each_method_come_from_one_pass() -> None:
    model, x = network("test_resnet", (2,)), torch.randn(2, 3, 90, 131)
    with torch.inference_mode():
        methods = dict(model.methods(model.vectors(x)))
        earlier, last = (part.data for part in model.maps(x))
    pyramids = [torch.cat([F.adaptive_max_pool2d(part, n).flatten(1) for n in (2, 1)], 1) for part in (earlier, last)]
    torch.testing.assert_close(methods[MEAN], last.mean((2, 3)))
    torch.testing.assert_close(methods[MAXIMUM], last.amax((2, 3)))
    torch.testing.assert_close(methods[PYRAMID], pyramids[1])
    torch.testing.assert_close(methods[STAGES], model.concatenate(pyramids))
    assert TOKEN not in methods


def test_class_token_of_transformers_is_a_method() -> None:
    model, x = network("test_vit", ()), torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        methods = dict(model.methods(model.vectors(x)))
        prefix = model.maps(x)[0].prefix
    assert prefix is not None
    torch.testing.assert_close(methods[TOKEN], prefix[:, 0])
    assert STAGES not in methods


def test_all_methods_are_scored_on_the_same_splits(data: Path, tmp_path: Path) -> None:
    images = read_classification(data, "train")
    comparison = compare_pooling(images, OPTIONS, tmp_path, seeds=2)
    assert list(comparison.runs) == [MEAN, MAXIMUM, PYRAMID, STAGES]
    assert comparison.lengths == {MEAN: 96, MAXIMUM: 96, PYRAMID: 480, STAGES: 480 + 5 * 48}
    assert all(len(runs) == 2 for runs in comparison.runs.values())
    assert comparison.images == len(images.samples) == 21
    assert all(3 * run.top1 == pytest.approx(round(3 * run.top1)) for run in comparison.runs[MEAN])  # 3 test images
    assert comparison.runs[PYRAMID][0].top1 > 0.6
    again = compare_pooling(images, OPTIONS, tmp_path, seeds=1)
    assert again.runs[STAGES] == comparison.runs[STAGES][:1]


def test_verdict_compares_the_best_method_with_the_mean() -> None:
    runs = {
        MEAN: [PoolingScores(0, accuracy, 0) for accuracy in (0.8, 0.7)],
        STAGES: [PoolingScores(0, accuracy, 0) for accuracy in (0.85, 0.71)],
    }
    text = verdict(PoolingComparison(runs, {}, 10, ()))
    assert text.endswith("pyramids of stages: 3.0 points above the global mean on average, 1.0 to 5.0 on single splits")


def test_command_prints_a_table_and_writes_the_results(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "pooling", str(data), "--backbone", "test_resnet", "--weights", "none", "--levels", "2,1"]
    command += ["--out", str(tmp_path), "--seeds", "2", "--stages", "-3,-2"]
    assert run(command) == 0
    text = capsys.readouterr().out
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert all(name in text for name in content["pooling"])
    assert content["pooling"][STAGES]["length"] == 5 * (96 + 192 + 48)
    assert content["verdict"] in " ".join(text.split())
    assert run([*command, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == content
    assert run([*command, "--stages", "none", "--json", "--quiet"]) == 0
    assert STAGES not in json.loads(capsys.readouterr().out)["pooling"]
