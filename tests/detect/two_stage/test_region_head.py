"""Vectors of boxes, and the predictions for them."""

import pytest
import torch

from sppnet.detect.two_stage.region_head import RegionHead

LEVELS = (2, 1)


def head(classes: int = 3) -> RegionHead:
    return RegionHead(width=4, channels=[5], levels=[LEVELS], classes=classes, hidden=8)


def test_vectors_are_samples_of_the_fused_map_and_the_pyramid_of_the_other() -> None:
    fused = torch.arange(16.0).repeat(1, 4, 8, 1)  # values that increase by 1 per cell to the right
    other, box = torch.rand(1, 5, 4, 8), torch.tensor([[32.0, 0, 88, 56]])
    vectors = head().pool(fused, 8, [other], [16], [box])
    samples = vectors[0, : 4 * 49].reshape(4, 7, 7)
    # The box has 7 x 7 cells, from cell 4, so that each sample is the value in the center of a cell.
    torch.testing.assert_close(samples, torch.arange(4.0, 11).expand(4, 7, 7))
    pyramid = vectors[0, 4 * 49 :]
    assert len(pyramid) == 5 * 5
    whole = head().pyramids([other], [16], [torch.tensor([[0.0, 0, 127, 63]])])[0]
    assert set(other[0].amax((1, 2)).tolist()) <= set(whole.tolist())


def test_boxes_of_each_image_are_pooled_from_its_own_map() -> None:
    fused, other = torch.rand(2, 4, 8, 8), torch.rand(2, 5, 4, 4)
    boxes = [torch.tensor([[0.0, 0, 30, 30], [8, 8, 60, 40]]), torch.tensor([[5.0, 6, 44, 33]])]
    vectors = head().pool(fused, 8, [other], [16], boxes)
    single = head().pool(fused[1:], 8, [other[1:]], [16], boxes[1:])
    assert torch.equal(vectors[2:], single)


def test_boxes_are_refined_from_the_fused_map_alone() -> None:
    model = head().eval()
    vectors = torch.rand(3, 4 * 49 + 25)
    changed = torch.cat((vectors[:, : 4 * 49], torch.rand(3, 25)), 1)
    with torch.inference_mode():
        before, after = model(vectors), model(changed)
    assert torch.equal(before.offsets, after.offsets)
    assert not torch.equal(before.logits, after.logits)
    assert not torch.equal(before.objectness, after.objectness)


def test_trains_on_a_single_vector_without_changing_the_statistics() -> None:
    model = head()
    output = model(torch.rand(1, 4 * 49 + 25))
    sum(part.sum() for part in output).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert not model.norm.num_batches_tracked
    assert model.norm.running_mean is not None
    assert not model.norm.running_mean.any()


@pytest.mark.parametrize("classes", [1, 3])
def test_no_boxes_give_no_predictions(classes: int) -> None:
    model = head(classes).eval()
    vectors = model.pool(torch.rand(1, 4, 8, 8), 8, [torch.rand(1, 5, 4, 4)], [16], [torch.zeros(0, 4)])
    output = model(vectors)
    assert (output.logits.shape, output.objectness.shape, output.offsets.shape) == ((0, classes), (0,), (0, 4))


def test_dropout_drops_the_requested_share_and_keeps_the_mean() -> None:
    dropout = RegionHead(width=1, channels=[1], levels=[(1,)], classes=1, dropout=0.25).class_branch[0]
    x = torch.ones(3, 100_001)  # not a multiple of the eight bytes of a random word
    output = dropout(x)
    assert output.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (output == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(dropout.eval()(x), x)
    torch.manual_seed(0)
    first = dropout.train()(x)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), first)
