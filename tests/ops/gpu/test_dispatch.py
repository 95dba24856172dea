"""Dispatch to the Triton kernels, on a GPU or in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sppnet.ops.gpu import dispatch as gpu

pytest.importorskip("triton")
KERNELS = Path(__file__).parents[2] / "gpu_kernels.py"


def test_kernels_match_the_reference() -> None:
    """Run gpu_kernels.py in a new process, since Triton selects its interpreter on import."""
    interpreter = "0" if torch.cuda.is_available() else "1"
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", str(KERNELS)],
        env={**os.environ, "TRITON_INTERPRET": interpreter, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-8000:] + process.stderr[-2000:]


def test_triton_is_not_imported_with_the_package() -> None:
    code = "import sys, sppnet, sppnet.ops.gpu.dispatch; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cpu_maps_are_not_served() -> None:
    assert not gpu.serves(torch.zeros(1, 1, 1, 1))
