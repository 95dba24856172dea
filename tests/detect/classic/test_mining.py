"""Tests of the SVMs for detection: the optimum, hard negative mining, and the choice of negatives."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from sppnet.detect.classic import mining
from sppnet.detect.classic.mining import fit_detection_svms
from sppnet.detect.classic.vector_scale import MEAN_NORM
from sppnet.detect.classic.windows import Windows
from tests.helpers.window_cases import make_windows

Features = Callable[[int, Tensor], Tensor]


def table(vectors: Sequence[Tensor]) -> Features:
    """Return a feature function that reads from one matrix per image."""
    return lambda image, rows: vectors[image][rows]


def scene(objects: Tensor, labels: Sequence[int], background: Tensor, num_classes: int = 2) -> tuple[Windows, Tensor]:
    """Create the windows and vectors of an image whose background overlaps no object."""
    overlap = [1.0] * len(objects) + [0.0] * len(background)
    window_labels = [*labels, *[0] * len(background)]
    return make_windows(overlap, window_labels, len(objects), num_classes), torch.cat((objects, background))


def norm_of(vectors: Sequence[Tensor]) -> float:
    return float(torch.cat(list(vectors)).norm(dim=1).mean())


def objective(weight: Tensor, bias: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    positive_loss = (1 - positives @ weight - bias).clamp(min=0).sum()
    negative_loss = (1 + negatives @ weight + bias).clamp(min=0).sum()
    return (weight @ weight) / 2 + (bias / 10) ** 2 / 2 + 1e-3 * (2 * positive_loss + negative_loss)


def slow_svm(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Solve the dual problem by coordinate descent."""
    signed = torch.cat((positives, -negatives))
    tens = torch.tensor([10.0] * len(positives) + [-10.0] * len(negatives), dtype=torch.float64)
    x = torch.cat((signed, tens[:, None]), dim=1)
    bounds = [2e-3] * len(positives) + [1e-3] * len(negatives)
    solution, alpha = torch.zeros(x.shape[1], dtype=torch.float64), [0.0] * len(x)
    squares = (x * x).sum(1).tolist()
    for _ in range(300):
        for row, (vector, bound) in enumerate(zip(x, bounds, strict=True)):
            step = (1 - float(vector @ solution)) / squares[row]
            value = min(max(alpha[row] + step, 0.0), bound)
            solution = solution + (value - alpha[row]) * vector
            alpha[row] = value
    return solution[:-1], solution[-1] * 10


@pytest.fixture(scope="module")
def inseparable() -> tuple[Windows, Tensor]:
    """Create two clouds that are not linearly separable."""
    torch.manual_seed(0)
    return scene(torch.randn(8, 3) + torch.tensor([1.2, 0, 0]), [0] * 8, torch.randn(16, 3) - 0.4, 1)


def test_no_perturbation_improves_the_solution() -> None:
    """The clouds are far from the origin, so that the penalty of the bias matters."""
    far = torch.tensor([4.0, 4])
    aside = torch.tensor([1.0, 0])
    windows, x = scene(torch.randn(300, 2) * 2 + far + aside, [0] * 300, torch.randn(300, 2) * 2 + far - aside, 1)
    layer = fit_detection_svms([windows], table([x]), 1)
    scale = MEAN_NORM / norm_of([x])
    positives, negatives = (x.double() * scale).split(300)
    weight, bias = layer.weight.detach()[0].double() / scale, layer.bias.detach()[0].double()
    minimum = objective(weight, bias, positives, negatives)
    solution = torch.cat((weight, bias[None] / 10))
    for step in (solution, -solution, *torch.eye(3).double(), *-torch.eye(3).double(), *torch.randn(60, 3).double()):
        for size in (0.003, 0.01, 0.03, 0.1, 0.3, 1):
            moved = size * step / step.norm() * torch.tensor([1, 1, 10])
            assert objective(weight + moved[:2], bias + moved[2], positives, negatives) > minimum * (1 - 1e-6)


def test_solution_matches_the_slow_reference(inseparable: tuple[Windows, Tensor]) -> None:
    windows, x = inseparable
    layer = fit_detection_svms([windows], table([x]), 1)
    scaled = x.double() * MEAN_NORM / norm_of([x])
    weight, bias = slow_svm(scaled[:8], scaled[8:])
    expected = scaled @ weight + bias
    assert (expected[:8] < 1).any()
    torch.testing.assert_close(layer(x)[:, 0].double(), expected, rtol=1e-2, atol=1e-2)


def test_weights_include_the_scaling_to_a_mean_norm_of_20(inseparable: tuple[Windows, Tensor]) -> None:
    windows, x = inseparable
    layer = fit_detection_svms([windows], table([x]), 1)
    for factor in (1e-3, 64.0):
        scaled = fit_detection_svms([windows], table([x * factor]), 1)
        torch.testing.assert_close(scaled(x * factor), layer(x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(scaled.weight * factor, layer.weight, rtol=1e-3, atol=1e-4)


def test_learns_from_hard_negatives_of_later_images() -> None:
    """Without the image of hard negatives, they score as positives."""
    objects, easy = torch.tensor([[20.0, 0, 0]]), torch.tensor([[-20.0, 0, 0]])
    hard = torch.tensor([[18.0, 14, 0]])
    images = [scene(objects.expand(6, -1), [0] * 6, easy.expand(9, -1)) for _ in range(5)]
    last = scene(objects[:0], [], hard.expand(9, -1))
    windows, vectors = zip(*images, strict=True)
    naive = fit_detection_svms(windows, table(vectors), 2)
    mined = fit_detection_svms([*windows, last[0]], table([*vectors, last[1]]), 2)
    assert naive(hard)[0, 0] > 0
    assert mined(hard)[0, 0] < -0.5
    assert mined(objects)[0, 0] > 0.5
    assert mined(easy)[0, 0] < -0.9


class Recorder:
    """Substitute for liblinear that records its inputs; the margin is the first feature."""

    def __init__(self) -> None:
        self.positives: list[list[list[float]]] = []
        self.negatives: list[list[list[float]]] = []

    def __call__(self, positives: Tensor, negatives: Tensor, _: int) -> tuple[Tensor, float]:
        self.positives.append(positives.tolist())
        self.negatives.append(negatives.tolist())
        return torch.eye(positives.shape[1])[0], 0.0


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    instance = Recorder()
    monkeypatch.setattr(mining, "_fit", instance)
    monkeypatch.setattr(mining, "mean_norm_scale", lambda _: 1.0)
    return instance


def disable_shuffling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.Random.shuffle", lambda *_: None)


def test_mining_step_by_step(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first image adds all negatives, later ones those above -1.0001; each fit drops those below -1.2."""
    disable_shuffling(monkeypatch)
    objects = torch.tensor([[5.0]])
    first, second = torch.tensor([[-9.0], [-1.21], [-1.19], [2.0]]), torch.tensor([[-1.1], [-1.0002], [-1.0], [0.5]])
    images = [scene(objects, [0], first, 1), scene(objects + 1, [0], second, 1)]
    windows, vectors = zip(*images, strict=True)
    layer = fit_detection_svms(windows, table(vectors), 1)
    assert (layer.weight.item(), layer.bias.item()) == (1, 0)
    rounded = [[round(x, 4) for (x,) in negatives] for negatives in recorder.negatives]
    assert rounded == [[-9, -1.21, -1.19, 2], [-1.19, 2, -1, 0.5]]
    assert recorder.positives == [[[5], [6]]] * 2


@pytest.mark.parametrize(("each", "fits"), [(1000, 2), (1001, 3)])
def test_retrains_after_more_than_2000_hard_negatives(each: int, fits: int, recorder: Recorder) -> None:
    images = [scene(torch.ones(1, 2), [0], torch.zeros(each, 2), 1) for _ in range(3)]
    windows, vectors = zip(*images, strict=True)
    fit_detection_svms(windows, table(vectors), 1)
    assert len(recorder.negatives) == fits


def test_negatives_overlap_the_class_by_less_than_0_3_and_no_difficult_object(recorder: Recorder) -> None:
    """Objects of one class are negatives of the others."""
    overlap = [1, 1, 0.3, 0.2999, 0.6, 0, 0]
    labels = [0, 1, 0, 0, 1, 0, 0]
    windows = make_windows(overlap, labels, 2, 2, [True] * 6 + [False])
    fit_detection_svms([windows], table([torch.arange(7.0)[:, None]]), 2)
    assert recorder.positives[0] == [[0]]
    assert recorder.positives[1] == [[1]]
    assert recorder.negatives[0] == [[1], [3], [4], [5]]
    assert recorder.negatives[1] == [[0], [2], [3], [5]]


def test_class_without_objects_scores_below_all_others() -> None:
    images = [scene(torch.randn(4, 5) + 1, [0, 2, 2, 0], torch.randn(20, 5), 4) for _ in range(3)]
    windows, vectors = zip(*images, strict=True)
    layer = fit_detection_svms(windows, table(vectors), 4)
    scores = layer(torch.cat(vectors))
    assert (scores[:, [1, 3]].max(1).values < scores[:, [0, 2]].min(1).values).all()
    assert layer.weight.isfinite().all()
    assert layer.bias.tolist()[1::2] == [-MEAN_NORM, -MEAN_NORM]


def test_final_fit_is_skipped_if_all_negatives_are_easy() -> None:
    """The layer then has the weights of the previous fit."""
    objects, easy = torch.tensor([[20.0, 0]]).expand(6, -1), torch.tensor([[-80.0, 0]]).expand(3, -1)
    windows, x = scene(objects, [0] * 6, easy, 1)
    layer = fit_detection_svms([windows, windows], table([x, x]), 1)
    assert layer(easy).max() < -1.2
    assert layer(objects).min() > 0.9


def test_images_without_windows_are_ignored() -> None:
    empty = scene(torch.empty(0, 5), [], torch.empty(0, 5))
    images = [empty, scene(torch.randn(4, 5) + 1, [0, 1, 1, 0], torch.randn(20, 5)), empty]
    windows, vectors = zip(*images, strict=True)
    layer = fit_detection_svms(windows, table(vectors), 2)
    torch.testing.assert_close(layer.weight, fit_detection_svms(windows[1:2], table(vectors[1:2]), 2).weight)


def same(a: nn.Linear, b: nn.Linear) -> bool:
    return torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_layer_depends_on_the_seed_but_not_on_torchs() -> None:
    images = [scene(torch.randn(4, 30) + 0.3, [0, 1, 1, 0], torch.randn(60, 30)) for _ in range(4)]
    windows, vectors = zip(*images, strict=True)
    first = fit_detection_svms(windows, table(vectors), 2, seed=3)
    torch.manual_seed(77)
    assert same(fit_detection_svms(windows, table(vectors), 2, seed=3), first)
    assert not same(fit_detection_svms(windows, table(vectors), 2, seed=4), first)


def test_rejects_data_without_objects() -> None:
    windows, x = scene(torch.empty(0, 3), [], torch.randn(5, 3))
    with pytest.raises(
        ValueError, match="data: expected at least one object that is not difficult, got none in 1 images"
    ):
        fit_detection_svms([windows], table([x]), 2)
