"""Tests of the names of box formats."""

import subprocess
import sys


def test_formats_are_importable_without_torch() -> None:
    code = "import sys, sppnet.data.formats.box_formats; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
