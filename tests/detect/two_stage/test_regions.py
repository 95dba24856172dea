"""Proposals, and the regions that the region head is trained on."""

import pytest
import torch

from sppnet.detect.two_stage.dense_head import DenseOutput
from sppnet.detect.two_stage.losses import Objects
from sppnet.detect.two_stage.regions import Regions, decay_duplicates, propose, sample
from sppnet.ops.boxes import overlaps
from tests.helpers.two_stage import iou

SIZE = (70, 90)  # height and width of the image; the map has 96 x 96 pixels
CENTERS = torch.tensor([[x * 8 + 4.0, y * 8 + 4.0] for y in range(12) for x in range(12)])


def random_output(images: int = 1) -> DenseOutput:
    cells = len(CENTERS)
    boxes = torch.cat((CENTERS - torch.rand(images, cells, 2) * 30, CENTERS + torch.rand(images, cells, 2) * 30), 2)
    return DenseOutput(torch.zeros(images, 1, 12, 12), torch.randn(images, cells), boxes, CENTERS)


def slow_propose(output: DenseOutput, image: int) -> list[tuple[float, list[float]]]:
    """Return (score, box) of the proposals by greedy suppression, best first."""
    kept: list[tuple[float, list[float]]] = []
    height, width = SIZE
    for row in output.logits[image].argsort(descending=True).tolist():
        x1, y1, x2, y2 = output.boxes[image, row].tolist()
        box = [min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)]
        if box[2] - box[0] >= 1 and box[3] - box[1] >= 1 and all(iou(box, other) <= 0.7 for _, other in kept):
            kept.append((float(output.logits[image, row].sigmoid()), box))
    return kept


def test_proposals_match_greedy_suppression() -> None:
    output = random_output(2)
    expected = slow_propose(output, 1)
    found = propose(output, 1, SIZE, 1000)
    assert len(found.boxes) == len(expected) > 20
    torch.testing.assert_close(found.boxes, torch.tensor([box for _, box in expected]))
    assert found.scores.tolist() == pytest.approx([score for score, _ in expected])
    few = propose(output, 1, SIZE, 7)
    assert torch.equal(few.boxes, found.boxes[:7])


def test_cells_of_the_padding_give_no_proposals() -> None:
    output = random_output()
    tight = output._replace(boxes=torch.cat((CENTERS - 2, CENTERS + 2), 1)[None])
    found = propose(tight, 0, (40, 40), 1000)
    assert len(found.boxes) == 5 * 5
    assert not len(propose(tight, 0, (1, 1), 1000).boxes)


def test_regions_of_objects_have_their_class_box_and_overlap() -> None:
    boxes = torch.tensor([[5.0, 5, 30, 30], [40, 20, 80, 60], [10, 40, 35, 65]])
    objects = Objects(boxes, torch.tensor([2, 0, 1]), torch.tensor([False, False, True]))
    proposals = propose(random_output(), 0, SIZE, 150).boxes
    found = sample(proposals, objects)
    positive = found.labels >= 0
    table = overlaps(found.proposals, boxes[:2])
    best = table.argmax(1)
    assert torch.equal(found.labels[positive], objects.labels[best[positive]])
    assert torch.equal(found.boxes, boxes[best])
    torch.testing.assert_close(found.iou[positive], table.amax(1)[positive])
    assert (table.amax(1)[positive] >= 0.5).all()
    assert (table.amax(1)[~positive] < 0.5).all()
    assert not found.iou[~positive].any()
    assert (overlaps(found.proposals[~positive], boxes[2:]) < 0.5).all(), "difficult objects are no background"
    assert (found.iou[positive] == 1).sum() >= 2, "the objects themselves are regions"


def test_number_of_regions_is_bounded() -> None:
    objects = Objects(
        torch.cat((CENTERS, CENTERS + 6), 1).repeat(14, 1), torch.zeros(2016).long(), torch.zeros(2016).bool()
    )
    found = sample(torch.rand(500, 4).cumsum(1) * 30, objects)
    assert (found.labels >= 0).sum() == 48
    assert len(found.labels) <= 48 + 64
    none = Objects(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).bool())
    found = sample(torch.rand(500, 4).cumsum(1) * 30, none)
    assert found.labels.tolist() == [-1] * 16
    assert not found.iou.any()


@pytest.mark.parametrize("difficult", [False, True])
def test_images_without_proposals_are_sampled(difficult: bool) -> None:
    objects = Objects(torch.tensor([[5.0, 5, 30, 30]]), torch.tensor([1]), torch.tensor([difficult]))
    found = sample(torch.zeros(0, 4), objects)
    assert (found.labels >= 0).any() == (not difficult)
    empty = Regions(torch.zeros(0, 4), torch.zeros(0))
    assert len(sample(empty.boxes, Objects(*(part[:0] for part in objects))).labels) == 0


def test_duplicates_lose_score_as_in_a_plain_loop() -> None:
    torch.manual_seed(0)
    corners = torch.rand(30, 2) * 20
    boxes, labels = torch.cat((corners, corners + 15 + torch.rand(30, 2) * 10), 1), torch.arange(30) % 3
    scores = torch.rand(30).sort(descending=True).values
    expected = []
    for index in range(30):
        better = [other for other in range(index) if labels[other] == labels[index]]
        factors = [1.0]
        for other in better:
            distinct = 1 - max(
                (iou(boxes[third].tolist(), boxes[other].tolist()) for third in better if third < other), default=0
            )
            factors.append((1 - iou(boxes[index].tolist(), boxes[other].tolist())) / distinct)
        expected.append(scores[index].item() * min(factors))
    found = decay_duplicates(boxes, scores, labels)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert (found < scores).sum() > 15


def test_equal_boxes_of_a_class_leave_one() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9]] * 3)
    found = decay_duplicates(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 1, 0]))
    torch.testing.assert_close(found, torch.tensor([0.9, 0, 0.7]))
    assert len(decay_duplicates(boxes[:0], torch.zeros(0), torch.zeros(0).long())) == 0
