"""The linear SVM head against scikit-learn on the original vectors."""

import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from sppnet.classify.network import create_head
from sppnet.training.svm import fit_linear_svm


def clusters(classes: int, each: int, width: int) -> tuple[Tensor, Tensor]:
    centers = torch.rand(classes, width)
    labels = torch.arange(classes).repeat_interleave(each)
    return centers[labels] + 0.15 * torch.randn(len(labels), width), labels


def logits_of(layer: nn.Linear, vectors: Tensor) -> Tensor:
    head = create_head("linear", layer.in_features, layer.out_features)
    head.get_submodule("fc").load_state_dict(layer.state_dict())
    logits: Tensor = head(vectors)
    return logits.detach()


@pytest.mark.parametrize(("classes", "each", "width"), [(5, 12, 300), (5, 60, 20), (2, 10, 100)])
def test_margins_match_scikit_learn_on_unit_vectors(classes: int, each: int, width: int) -> None:
    """The margins also match where the SVM is fitted in the span of fewer vectors than dimensions."""
    vectors, labels = clusters(classes, each, width)
    unit = nn.functional.normalize(vectors, dim=1).numpy()
    svm = LinearSVC(C=1.0, max_iter=100_000, tol=1e-8).fit(unit, labels.numpy())
    margins = torch.from_numpy(svm.decision_function(unit)).float()
    logits = logits_of(fit_linear_svm(vectors, labels, classes), vectors)
    if classes == 2:
        margins = torch.stack((-margins, margins), 1)
    scale = (logits / margins).median()
    assert scale > 0
    torch.testing.assert_close(logits / scale, margins, rtol=2e-2, atol=2e-2)


def test_scores_are_calibrated() -> None:
    vectors, labels = clusters(6, 40, 200)
    layer = fit_linear_svm(vectors[::2], labels[::2], 6)
    probabilities = logits_of(layer, vectors[1::2]).softmax(1)
    correct = probabilities.argmax(1) == labels[1::2]
    assert correct.float().mean() > 0.9
    assert abs(probabilities.max(1).values.mean() - correct.float().mean()) < 0.1


def test_class_without_samples_is_never_predicted() -> None:
    vectors, labels = clusters(3, 20, 50)
    labels[labels == 1] = 2
    assert not (logits_of(fit_linear_svm(vectors, labels, 4), vectors).argmax(1) % 2).any()


def test_rejects_wrong_arguments() -> None:
    vectors, labels = clusters(2, 5, 10)
    with pytest.raises(ValueError, match="svm_c: expected a penalty above 0, got 0"):
        fit_linear_svm(vectors, labels, 2, c=0.0)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        fit_linear_svm(vectors, torch.zeros_like(labels), 2)
