"""Options of training a classifier: defaults and checks."""

import subprocess
import sys

import pytest

from sppnet.classify.options import ClassifyOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"svm_c": 0.0, "head": "svm"}, "svm_c: expected a penalty above 0, got 0.0"),
        ({"workers": -1}, "workers: expected at least 0, got -1"),
        ({"head": "svm", "train_stages": "all"}, r"needs a frozen backbone \(--train-stages 0\)"),
        ({"class_weights": "root"}, "class_weights: expected one of none, balanced, got 'root'"),
        (
            {"ema": 0.99},
            "ema: expected no value, because the head ridge is not trained in epochs, got 0.99; choose another one",
        ),
        ({"patience": 2, "head": "svm"}, "patience: expected no value, because the head svm"),
        ({"svm_c": 0.1}, "svm_c: expected no value with the head ridge, got 0.1; set --head svm"),
        ({"head": "mlp"}, "head: expected one of linear, fc, ridge, svm"),
        ({"head": ""}, "head: expected one of linear, fc, ridge, svm"),
        ({"sizes": "big"}, "sizes: expected 224"),
        ({"resize": "crop"}, "center-crop"),
        ({"devices": 0}, "devices: expected at least 1, got 0"),
        ({"batch": 2, "devices": 2, "nodes": 2}, r"devices: expected at most one per image of a batch \(2\), got 4"),
        ({"freeze_backbone": True, "devices": 2}, "devices: expected 1 with a frozen backbone, got 2"),
        ({"batch_pixels": 2_000_000}, r"batch_pixels: expected at least max_pixels \(1000000\) and native sizes"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_wrong_options(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifyOptions(**values)  # type: ignore[arg-type]


def test_options_do_not_import_torch() -> None:
    """The help of a command must be fast."""
    modules = "sppnet.classify.options", "sppnet.cli.classify", "sppnet.cli.compare_sizes"
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_head_and_evaluation_size_default_to_the_kind_of_training() -> None:
    frozen, native, sides = (
        ClassifyOptions(freeze_backbone=True),
        ClassifyOptions(train_stages="all", sizes="native"),
        ClassifyOptions(train_stages="2", sizes="180,224"),
    )
    assert [options.kind for options in (frozen, native, sides)] == ["ridge", "linear", "linear"]
    assert [options.evaluation_size for options in (frozen, native, sides)] == ["native", "native", "shorter-side:256"]
