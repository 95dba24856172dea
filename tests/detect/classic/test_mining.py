"""SVMs for detection: the objective, the mining step by step, and what stands in no negative's place."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from sppnet.detect.classic import mining
from sppnet.detect.classic.mining import NORM, fit_detection_svms
from sppnet.detect.classic.windows import Windows
from tests.helpers.window_cases import make_windows

Features = Callable[[int, Tensor], Tensor]


def table(vectors: Sequence[Tensor]) -> Features:
    """Features from one matrix an image."""
    return lambda image, rows: vectors[image][rows]


def scene(objects: Tensor, labels: Sequence[int], background: Tensor, num_classes: int = 2) -> tuple[Windows, Tensor]:
    """An image whose background overlaps no object."""
    overlap = [1.0] * len(objects) + [0.0] * len(background)
    kinds = [*labels, *[0] * len(background)]
    return make_windows(overlap, kinds, len(objects), num_classes), torch.cat((objects, background))


def norm_of(vectors: Sequence[Tensor]) -> float:
    return float(torch.cat(list(vectors)).norm(dim=1).mean())


def objective(weight: Tensor, bias: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    missed = (1 - positives @ weight - bias).clamp(min=0).sum()
    wrong = (1 + negatives @ weight + bias).clamp(min=0).sum()
    return (weight @ weight) / 2 + (bias / 10) ** 2 / 2 + 1e-3 * (2 * missed + wrong)


def slow_svm(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """The dual problem, one coordinate after the other."""
    signed = torch.cat((positives, -negatives))
    tens = torch.tensor([10.0] * len(positives) + [-10.0] * len(negatives), dtype=torch.float64)
    x = torch.cat((signed, tens[:, None]), dim=1)
    bounds = [2e-3] * len(positives) + [1e-3] * len(negatives)
    solution, alpha = torch.zeros(x.shape[1], dtype=torch.float64), [0.0] * len(x)
    squares = (x * x).sum(1).tolist()
    for _ in range(300):
        for row, (one, bound) in enumerate(zip(x, bounds, strict=True)):
            step = (1 - float(one @ solution)) / squares[row]
            value = min(max(alpha[row] + step, 0.0), bound)
            solution = solution + (value - alpha[row]) * one
            alpha[row] = value
    return solution[:-1], solution[-1] * 10


@pytest.fixture(scope="module")
def mixed() -> tuple[Windows, Tensor]:
    """Two clouds that no plane parts."""
    torch.manual_seed(0)
    return scene(torch.randn(8, 3) + torch.tensor([1.2, 0, 0]), [0] * 8, torch.randn(16, 3) - 0.4, 1)


def test_the_solution_beats_every_perturbation() -> None:
    """Of clouds far from the origin, where it counts how the bias is penalised."""
    far = torch.tensor([4.0, 4])
    aside = torch.tensor([1.0, 0])
    windows, x = scene(torch.randn(300, 2) * 2 + far + aside, [0] * 300, torch.randn(300, 2) * 2 + far - aside, 1)
    layer = fit_detection_svms([windows], table([x]), 1)
    scale = NORM / norm_of([x])
    positives, negatives = (x.double() * scale).split(300)
    weight, bias = layer.weight.detach()[0].double() / scale, layer.bias.detach()[0].double()
    least = objective(weight, bias, positives, negatives)
    solution = torch.cat((weight, bias[None] / 10))
    for step in (solution, -solution, *torch.eye(3).double(), *-torch.eye(3).double(), *torch.randn(60, 3).double()):
        for size in (0.003, 0.01, 0.03, 0.1, 0.3, 1):
            moved = size * step / step.norm() * torch.tensor([1, 1, 10])
            assert objective(weight + moved[:2], bias + moved[2], positives, negatives) > least * (1 - 1e-6)


def test_the_solution_equals_the_reference(mixed: tuple[Windows, Tensor]) -> None:
    windows, x = mixed
    layer = fit_detection_svms([windows], table([x]), 1)
    scaled = x.double() * NORM / norm_of([x])
    weight, bias = slow_svm(scaled[:8], scaled[8:])
    expected = scaled @ weight + bias
    assert (expected[:8] < 1).any()
    torch.testing.assert_close(layer(x)[:, 0].double(), expected, rtol=1e-2, atol=1e-2)


def test_the_scaling_to_a_mean_norm_of_20_is_in_the_weights(mixed: tuple[Windows, Tensor]) -> None:
    windows, x = mixed
    layer = fit_detection_svms([windows], table([x]), 1)
    for factor in (1e-3, 64.0):
        other = fit_detection_svms([windows], table([x * factor]), 1)
        torch.testing.assert_close(other(x * factor), layer(x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(other.weight * factor, layer.weight, rtol=1e-3, atol=1e-4)
    assert mining._mean_norm([windows], table([x])) == pytest.approx(norm_of([x]), rel=1e-5)


def test_hard_negatives_of_a_later_image_are_learnt() -> None:
    """The first image alone says nothing against them, whichever the first one is."""
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
    """Stands in for liblinear: the margin is always the first number; keeps what it was given."""

    def __init__(self) -> None:
        self.positives: list[list[list[float]]] = []
        self.negatives: list[list[list[float]]] = []

    def __call__(self, positives: Tensor, negatives: Tensor, _: int) -> tuple[Tensor, float]:
        self.positives.append(positives.tolist())
        self.negatives.append(negatives.tolist())
        return torch.eye(positives.shape[1])[0], 0.0


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    stand_in = Recorder()
    monkeypatch.setattr(mining, "_fit", stand_in)
    monkeypatch.setattr(mining, "_mean_norm", lambda *_: NORM)
    return stand_in


def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.Random.shuffle", lambda *_: None)


def test_mining_step_by_step(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the first image are taken, later ones from -1.0001 on, and those below -1.2 are let go after a fit."""
    in_order(monkeypatch)
    objects = torch.tensor([[5.0]])
    first, second = torch.tensor([[-9.0], [-1.21], [-1.19], [2.0]]), torch.tensor([[-1.1], [-1.0002], [-1.0], [0.5]])
    images = [scene(objects, [0], first, 1), scene(objects + 1, [0], second, 1)]
    windows, vectors = zip(*images, strict=True)
    layer = fit_detection_svms(windows, table(vectors), 1)
    assert (layer.weight.item(), layer.bias.item()) == (1, 0)
    rounded = [[round(one[0], 4) for one in part] for part in recorder.negatives]
    assert rounded == [[-9, -1.21, -1.19, 2], [-1.19, 2, -1, 0.5]]
    assert recorder.positives == [[[5], [6]]] * 2


@pytest.mark.parametrize(("each", "fits"), [(1000, 2), (1001, 3)])
def test_it_is_trained_anew_after_more_than_2000_hard_negatives(each: int, fits: int, recorder: Recorder) -> None:
    images = [scene(torch.ones(1, 2), [0], torch.zeros(each, 2), 1) for _ in range(3)]
    windows, vectors = zip(*images, strict=True)
    fit_detection_svms(windows, table(vectors), 1)
    assert len(recorder.negatives) == fits


def test_windows_near_an_object_or_on_a_difficult_one_are_no_negatives(recorder: Recorder) -> None:
    """Below 0.3 they are; objects of one class are negatives of the others."""
    overlap = [1, 1, 0.3, 0.2999, 0.6, 0, 0]
    labels = [0, 1, 0, 0, 1, 0, 0]
    windows = make_windows(overlap, labels, 2, 2, [True] * 6 + [False])
    fit_detection_svms([windows], table([torch.arange(7.0)[:, None]]), 2)
    assert recorder.positives[0] == [[0]]
    assert recorder.positives[1] == [[1]]
    assert recorder.negatives[0] == [[1], [3], [4], [5]]
    assert recorder.negatives[1] == [[0], [2], [3], [5]]


def test_a_class_without_objects_scores_below_every_other() -> None:
    images = [scene(torch.randn(4, 5) + 1, [0, 2, 2, 0], torch.randn(20, 5), 4) for _ in range(3)]
    windows, vectors = zip(*images, strict=True)
    layer = fit_detection_svms(windows, table(vectors), 4)
    scores = layer(torch.cat(vectors))
    assert (scores[:, [1, 3]].max(1).values < scores[:, [0, 2]].min(1).values).all()
    assert layer.weight.isfinite().all()
    assert layer.bias.tolist()[1::2] == [-NORM, -NORM]


def test_negatives_that_are_all_easy_are_let_go_without_harm() -> None:
    """Nothing is left for the last fit, which the one before it stands in for."""
    objects, easy = torch.tensor([[20.0, 0]]).expand(6, -1), torch.tensor([[-80.0, 0]]).expand(3, -1)
    windows, x = scene(objects, [0] * 6, easy, 1)
    layer = fit_detection_svms([windows, windows], table([x, x]), 1)
    assert layer(easy).max() < -1.2
    assert layer(objects).min() > 0.9


def test_images_without_windows_do_no_harm() -> None:
    empty = scene(torch.empty(0, 5), [], torch.empty(0, 5))
    images = [empty, scene(torch.randn(4, 5) + 1, [0, 1, 1, 0], torch.randn(20, 5)), empty]
    windows, vectors = zip(*images, strict=True)
    layer = fit_detection_svms(windows, table(vectors), 2)
    torch.testing.assert_close(layer.weight, fit_detection_svms(windows[1:2], table(vectors[1:2]), 2).weight)


def same(a: nn.Linear, b: nn.Linear) -> bool:
    return torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_the_same_seed_gives_the_same_layer_and_torchs_own_is_not_asked() -> None:
    images = [scene(torch.randn(4, 30) + 0.3, [0, 1, 1, 0], torch.randn(60, 30)) for _ in range(4)]
    windows, vectors = zip(*images, strict=True)
    first = fit_detection_svms(windows, table(vectors), 2, seed=3)
    torch.manual_seed(77)
    assert same(fit_detection_svms(windows, table(vectors), 2, seed=3), first)
    assert not same(fit_detection_svms(windows, table(vectors), 2, seed=4), first)


def test_data_without_an_object_is_refused() -> None:
    windows, x = scene(torch.empty(0, 3), [], torch.randn(5, 3))
    with pytest.raises(ValueError, match="data: no training image has an object that is not difficult"):
        fit_detection_svms([windows], table([x]), 2)
