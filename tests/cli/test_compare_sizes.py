"""Options and invalid arguments of `sppnet compare sizes`."""

from pathlib import Path

import pytest

from sppnet.classify.options import ClassifyOptions
from sppnet.cli.compare_sizes import sizes_parser
from sppnet.cli.main import run
from sppnet.cli.parser import options_of


def test_training_options_default_to_those_of_the_dataclass() -> None:
    assert options_of(ClassifyOptions, sizes_parser().parse_args(["DATA", "--out", "OUT"])) == ClassifyOptions()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{data}/train"], "train, got none; set --val"),
        (["{data}", "--epochs", "1"], "epochs: expected at least 2, one for each alternating size, got 1"),
        (["{data}", "--seeds", "0"], "seeds: expected at least 1, got 0"),
        (["{data}", "--images-per-class", "0"], "images-per-class: expected at least 1, got 0"),
        (["{data}", "--val-images-per-class", "-1"], "val-images-per-class: expected at least 1, got -1"),
        (["{data}", "--val", "{data}/nowhere"], "no data set at"),
        (["{data}", "--format", "csv"], "format: expected the format of {data}, got csv, which is class-folders"),
    ],
)
def test_invalid_arguments_create_no_folder(
    arguments: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["compare", "sizes", *(text.format(data=data) for text in arguments), "--out", str(out)]) == 2
    assert message.format(data=data) in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
