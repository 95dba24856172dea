"""`sppnet evaluate` and `sppnet predict`: choice of the task by the run, and options of other tasks."""

from pathlib import Path

import pytest

from sppnet.cli.main import run


def test_predict_with_the_embedded_network(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((data / "test" / "red").iterdir())
    assert run(["predict", "imagenet", str(image)]) == 0
    assert capsys.readouterr().out.startswith(f"{image}\t")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "{detector}", "{data}", "--views", "10"], "views: expected a classifier, got a detector in"),
        (["evaluate", "{segmenter}", "{data}", "--svd", "4,4"], "svd: expected a detector, got a segmenter in"),
        (["evaluate", "imagenet", "{data}", "--flip"], "flip: expected a segmenter, got a classifier in imagenet"),
        (["predict", "imagenet", "{data}", "--svd", "4,4"], "svd: expected a detector, got a classifier in imagenet"),
        (["predict", "imagenet", "{data}", "--out", "x"], "out: expected a detector or segmenter, got a classifier"),
        (
            ["predict", "{detector}", "{data}", "--max-image-pixels", "9"],
            "got a detector in {detector}; omit --max-image-pixels",
        ),
    ],
)
def test_rejects_options_of_other_tasks(
    arguments: list[str],
    message: str,
    data: Path,
    detector: Path,
    segmenter: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"data": data, "detector": detector, "segmenter": segmenter}
    assert run([text.format(**paths) for text in arguments]) == 2
    captured = capsys.readouterr()
    assert message.format(**paths) in captured.err
    assert not captured.out
