"""Scripts for maintainers: comparison of recorded outputs."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

RESULT = {"source": "a.jpg", "size": [3, 5]}


@pytest.fixture(scope="module")
def compare_outputs() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / "compare_outputs.py"
    spec = importlib.util.spec_from_file_location("compare_outputs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")  # the script sets them; leaving the context restores them
        spec.loader.exec_module(module)
    return module


def test_results_of_earlier_versions_get_the_current_keys(compare_outputs: ModuleType) -> None:
    earlier = {
        "predict": [{**RESULT, "top": [["cat", 0.5], ["dog", 0.25]]}],
        "segment": {"prediction": [{**RESULT, "tiles": 1, "classes": {"sky": 0.25, "road": 0.75}, "files": {}}]},
    }
    current = {
        "predict": [{**RESULT, "top": [{"label": "cat", "score": 0.5}, {"label": "dog", "score": 0.25}]}],
        "segment": {
            "prediction": [{**RESULT, "classes": [{"label": "road", "share": 0.75}, {"label": "sky", "share": 0.25}]}]
        },
    }
    assert compare_outputs.with_current_keys(earlier) == current
    assert compare_outputs.with_current_keys(current) == current


def test_differences_are_listed_with_their_paths(compare_outputs: ModuleType) -> None:
    before = {"predict": [{**RESULT, "score": 0.0}], "export": {"64x64": float("nan")}}
    after = {"predict": [{**RESULT, "score": -0.0}], "export": {"64x64": float("nan")}}
    assert compare_outputs.differences(before, before) == []
    assert compare_outputs.differences(before, after) == ["/predict/0/score: 0.0 became -0.0"]
