"""Losses, compared with loops over cells and proposals."""

import math

import pytest
import torch
from torch import Tensor

from sppnet.detect.two_stage.assignment import assign
from sppnet.detect.two_stage.dense_head import DenseOutput
from sppnet.detect.two_stage.losses import Objects, RegionTargets, class_weights, dense_loss, region_loss
from sppnet.detect.two_stage.region_head import RegionOutput
from sppnet.ops.boxes import decode
from tests.helpers.two_stage import generalized_iou, is_inside

SIDE = 6
CENTERS = torch.tensor([[x * 8 + 4.0, y * 8 + 4.0] for y in range(SIDE) for x in range(SIDE)])
WEIGHTS = torch.tensor([0.5, 2.0, 1.5])


def random_output(images: int) -> DenseOutput:
    cells = len(CENTERS)
    boxes = torch.cat((CENTERS - torch.rand(images, cells, 2) * 20, CENTERS + torch.rand(images, cells, 2) * 20), 2)
    logits = torch.randn(images, cells)
    return DenseOutput(torch.zeros(images, 1, SIDE, SIDE), logits.requires_grad_(), boxes.requires_grad_(), CENTERS)


def random_objects(count: int, difficult: int = 0) -> Objects:
    corners = torch.rand(count, 2) * 30
    boxes = torch.cat((corners, corners + 4 + torch.rand(count, 2) * 14), 1)
    return Objects(boxes, torch.randint(3, (count,)), torch.arange(count) < difficult)


def cross_entropy(logit: float, target: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -target * math.log(probability) - (1 - target) * math.log(1 - probability)


def slow_dense_loss(output: DenseOutput, objects: list[Objects]) -> float:
    scores, boxes, targets, count = 0.0, 0.0, 0.0, 1
    for image, (edges, labels, difficult) in enumerate(objects):
        wanted, classes = edges[~difficult], labels[~difficult]
        found = assign(output.logits[image].detach().sigmoid(), output.boxes[image].detach(), CENTERS, wanted)
        positives = dict(
            zip(found.cells.tolist(), zip(found.objects.tolist(), found.targets.tolist(), strict=True), strict=True)
        )
        count += len(wanted)
        for cell, center in enumerate(CENTERS.tolist()):
            weight, target = float(not any(is_inside(center, box) for box in edges[difficult].tolist())), 0.0
            if cell in positives:
                number, target = positives[cell]
                weight = float(WEIGHTS[classes[number]])
                overlap = generalized_iou(output.boxes[image, cell].tolist(), wanted[number].tolist())
                boxes += weight * target * (1 - overlap)
                targets += weight * target
            scores += weight * cross_entropy(output.logits[image, cell].item(), target)
    return (scores + 2 * boxes) / max(targets, count)


def test_dense_loss_matches_loops_over_cells() -> None:
    output, objects = random_output(3), [random_objects(4, difficult=2), random_objects(0), random_objects(2)]
    assert dense_loss(output, objects, WEIGHTS).item() == pytest.approx(slow_dense_loss(output, objects), rel=1e-4)


def test_difficult_objects_change_only_the_weight_of_their_background_cells() -> None:
    output, (plain, difficult) = random_output(1), (random_objects(2), random_objects(1, difficult=1))
    both = Objects(*(torch.cat(parts) for parts in zip(plain, difficult, strict=True)))
    gradients = []
    for objects in (plain, both):
        gradients.append(torch.autograd.grad(dense_loss(output, [objects], WEIGHTS), [output.logits, output.boxes]))
    inside = torch.tensor([is_inside(center, difficult.boxes[0].tolist()) for center in CENTERS.tolist()])
    cells = assign(output.logits[0].detach().sigmoid(), output.boxes[0].detach(), CENTERS, plain.boxes).cells
    inside[cells] = False
    assert inside.any()
    assert not gradients[1][0][0, inside].any()
    assert torch.equal(gradients[1][0][0, ~inside], gradients[0][0][0, ~inside])
    assert torch.equal(gradients[1][1], gradients[0][1])


def test_images_without_objects_have_the_loss_of_the_background_only() -> None:
    output = random_output(2)
    loss = dense_loss(
        output,
        [random_objects(0), random_objects(2, difficult=2)._replace(boxes=torch.tensor([[90.0, 90, 99, 99]] * 2))],
        WEIGHTS,
    )
    assert loss.item() == pytest.approx(
        sum(cross_entropy(logit, 0) for logit in output.logits.flatten().tolist()), rel=1e-4
    )
    logits, boxes = torch.autograd.grad(loss, [output.logits, output.boxes])
    assert logits.isfinite().all()
    assert not boxes.any()


def test_losses_of_mirrored_predictions_are_equal() -> None:
    output, objects = random_output(1), random_objects(3, difficult=1)
    order = torch.arange(len(CENTERS)).reshape(SIDE, SIDE).flip(1).flatten()

    def flip(boxes: Tensor) -> Tensor:
        return torch.stack((8 * SIDE - boxes[..., 2], boxes[..., 1], 8 * SIDE - boxes[..., 0], boxes[..., 3]), -1)

    mirrored = output._replace(logits=output.logits[:, order], boxes=flip(output.boxes)[:, order])
    loss = dense_loss(mirrored, [objects._replace(boxes=flip(objects.boxes))], WEIGHTS)
    assert loss.item() == pytest.approx(dense_loss(output, [objects], WEIGHTS).item(), rel=1e-5)


def test_two_thousand_objects_have_a_finite_loss_and_gradients() -> None:
    output = random_output(1)
    gradients = torch.autograd.grad(dense_loss(output, [random_objects(2000)], WEIGHTS), [output.logits, output.boxes])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_class_weights_have_a_mean_of_one_and_favor_rare_classes() -> None:
    labels = torch.tensor([0] * 16 + [1] * 4)
    weights = class_weights(labels, 3)
    assert float(weights[1] / weights[0]) == pytest.approx(2)
    assert weights.isfinite().all()
    assert float(class_weights(labels, 2)[labels].mean()) == pytest.approx(1)
    assert class_weights(torch.tensor([1, 0]), 2).tolist() == [1, 1]


def random_regions(labels: list[int]) -> tuple[RegionOutput, RegionTargets]:
    count = len(labels)
    output = RegionOutput(torch.randn(count, 3), torch.randn(count), torch.randn(count, 4) / 5)
    proposals, boxes = random_objects(count).boxes, random_objects(count).boxes
    targets = RegionTargets(proposals, boxes, torch.tensor(labels), torch.rand(count) * (torch.tensor(labels) >= 0))
    return RegionOutput(*(part.requires_grad_() for part in output)), targets


def slow_region_loss(output: RegionOutput, targets: RegionTargets) -> float:
    classes = boxes = objectness = 0.0
    positives = [row for row, label in enumerate(targets.labels.tolist()) if label >= 0]
    for row, label in enumerate(targets.labels.tolist()):
        objectness += cross_entropy(output.objectness[row].item(), float(targets.iou[row]))
        if label >= 0:
            shares = [0.05 / 3 + 0.95 * (number == label) for number in range(3)]
            logs = output.logits[row].log_softmax(0).tolist()
            classes -= sum(share * log for share, log in zip(shares, logs, strict=True))
            box = decode(targets.proposals[row : row + 1], output.offsets[row : row + 1])[0].tolist()
            boxes += 1 - generalized_iou(box, targets.boxes[row].tolist())
    return (classes + 2 * boxes) / max(len(positives), 1) + 2 * objectness / len(targets.labels)


@pytest.mark.parametrize("labels", [[2, -1, 0, -1, 1], [-1, -1], [1]])
def test_region_loss_matches_loops_over_proposals(labels: list[int]) -> None:
    output, targets = random_regions(labels)
    loss = region_loss(output, targets)
    assert loss.item() == pytest.approx(slow_region_loss(output, targets), rel=1e-4)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, list(output)))
