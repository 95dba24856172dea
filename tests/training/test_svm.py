"""The linear SVM head against scikit-learn on the original vectors."""

import pytest
import torch
from sklearn.svm import LinearSVC
from torch import nn

from sppnet.training.svm import fit_linear_svm
from tests.helpers.linear_heads import clusters, logits_of


@pytest.mark.parametrize(("classes", "each", "width"), [(5, 12, 300), (5, 60, 20), (2, 10, 100)])
def test_margins_match_scikit_learn_on_unit_vectors(classes: int, each: int, width: int) -> None:
    """The margins also match where the SVM is fitted in the span of fewer vectors than dimensions."""
    vectors, labels = clusters(classes, each, width)
    unit = nn.functional.normalize(vectors, dim=1).numpy()
    svm = LinearSVC(C=1.0, max_iter=100_000, tol=1e-8).fit(unit, labels.numpy())
    margins = torch.from_numpy(svm.decision_function(unit)).float()
    logits = logits_of(fit_linear_svm(vectors, labels, classes).layer, vectors)
    if classes == 2:
        margins = torch.stack((-margins, margins), 1)
    torch.testing.assert_close(logits, margins, rtol=2e-2, atol=2e-2)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    vectors, labels = clusters(3, 40, 20)
    vectors, labels = vectors[30:], labels[30:]
    unit = nn.functional.normalize(vectors, dim=1).numpy()
    svm = LinearSVC(C=1.0, max_iter=100_000, tol=1e-8, class_weight="balanced").fit(unit, labels.numpy())
    margins = torch.from_numpy(svm.decision_function(unit)).float()
    logits = logits_of(fit_linear_svm(vectors, labels, 3, balanced=True).layer, vectors)
    torch.testing.assert_close(logits, margins, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("classes", "each", "held_out"), [(6, 40, 240), (4, 3, 12), (5, 200, 600)])
def test_margins_of_held_out_samples_are_those_of_a_fit_without_them(classes: int, each: int, held_out: int) -> None:
    """All samples are held out once, or as many fifths as have 500 samples together."""
    vectors, labels = clusters(classes, each, 100)
    svm = fit_linear_svm(vectors, labels, classes)
    assert len(svm.margins) == len(svm.labels) == held_out
    part = torch.arange(classes * each) % each < -(-each // 5)  # the first fold
    other = fit_linear_svm(vectors[~part], labels[~part], classes)
    first = torch.arange(held_out) % (held_out // classes) < -(-each // 5)
    torch.testing.assert_close(svm.margins[first], logits_of(other.layer, vectors[part]), rtol=2e-2, atol=2e-2)
    assert (svm.labels[first] == labels[part]).all()


def test_rejects_wrong_arguments() -> None:
    vectors, labels = clusters(2, 5, 10)
    with pytest.raises(ValueError, match="svm_c: expected a penalty above 0, got 0"):
        fit_linear_svm(vectors, labels, 2, c=0.0)
