"""Fixtures for tests of ONNX files: a model, its run folder, and the files exported from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import pytest

from sppnet import Classifier
from sppnet.cli.main import run
from sppnet.training.run import save
from tests.helpers.classifiers import build_classifier


@contextmanager
def disabled_shape_checks() -> Iterator[None]:
    """Disable shape checks: sizes are symbols during tracing, which the type checks do not accept as int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def _without_shape_checks() -> Iterator[None]:
    with disabled_shape_checks():
        yield


@pytest.fixture(scope="session")
def model() -> Classifier:
    return build_classifier(levels=(6, 3, 2, 1))


@pytest.fixture(scope="session")
def folder(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `run`, the run folder of the model, and plain.onnx, pixels.onnx and regions.onnx exported from it."""
    folder = tmp_path_factory.mktemp("export")
    save(model, folder / "run")
    files = {"plain": [], "pixels": ["--with-preprocessing"], "regions": ["--regions", "--levels", "4,2,1"]}
    with disabled_shape_checks():
        for name, options in files.items():
            out = str(folder / f"{name}.onnx")
            assert run(["export", str(folder / "run"), "--out", out, "--num-sizes", "6", *options]) == 0
    return folder
