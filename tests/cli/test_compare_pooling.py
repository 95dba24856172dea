"""Options and invalid arguments of `sppnet compare pooling`."""

from pathlib import Path

import pytest

from sppnet.classify.options import ClassifyOptions
from sppnet.cli.compare_pooling import pooling_parser
from sppnet.cli.main import run
from sppnet.cli.parser import options_of


def test_options_default_to_those_of_the_dataclass() -> None:
    assert options_of(ClassifyOptions, pooling_parser().parse_args(["DATA"])) == ClassifyOptions()


@pytest.mark.parametrize(("text", "stages"), [("-1,-2", (-1, -2)), ("3", (3,)), ("none", ())])
def test_stages_may_count_from_the_end(text: str, stages: tuple[int, ...]) -> None:
    assert pooling_parser().parse_args(["DATA", "--stages", text]).stages == stages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds: expected at least 1, got 0"),
        (["--head", "fc"], "head: expected ridge or svm for a comparison of pooling methods, got fc"),
        (["--stages", "7"], "stage: expected "),
        (["--svm-c", "0.1"], "svm_c: expected no value with the head ridge"),
    ],
)
def test_invalid_arguments_create_no_folder(
    arguments: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["compare", "pooling", str(data), *arguments, "--out", str(out)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
