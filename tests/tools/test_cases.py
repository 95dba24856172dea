"""Cases of the operator benchmark, and what their command imports."""

import subprocess
import sys

import pytest

from sppnet.cli.bench import bench_parser
from sppnet.cli.parser import options_of
from sppnet.tools.cases import Case


def test_options_of_the_command_are_those_of_a_case() -> None:
    arguments = bench_parser().parse_args(["--shape", "1,2,3,4", "--levels", "2x3,1", "--reduce", "avg", "--backward"])
    assert options_of(Case, arguments) == Case((1, 2, 3, 4), ((2, 3), 1), backward=True, reduce="avg")
    with pytest.raises(SystemExit):
        bench_parser().parse_args(["--layout", "nhwc"])


@pytest.mark.parametrize("command", ["bench", "check", "doctor"])
def test_parsers_do_not_import_torch(command: str) -> None:
    code = (
        f"import sys, sppnet.cli.{command}; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'timm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
