"""Sizes of training images by epoch: parsing and sides."""

import pytest

from sppnet.data.schedule import Schedule


def test_side_of_each_epoch() -> None:
    assert [Schedule.parse("224").side(epoch, 0) for epoch in range(3)] == [224, 224, 224]
    assert [Schedule.parse("180,224").side(epoch, 0) for epoch in range(4)] == [180, 224, 180, 224]
    assert Schedule.parse("native").side(0, 0) is None
    drawn = [Schedule.parse("180-224").side(epoch, 0) for epoch in range(400)]
    assert set(drawn) == set(range(180, 225))
    assert drawn == [Schedule.parse("180-224").side(epoch, 0) for epoch in range(400)]
    assert drawn != [Schedule.parse("180-224").side(epoch, 1) for epoch in range(400)]


@pytest.mark.parametrize("text", ["", "large", "224-180", "0", "9000", "180,", "180-224,300", "-180"])
def test_rejects_invalid_schedules(text: str) -> None:
    with pytest.raises(ValueError, match="sizes: expected"):
        Schedule.parse(text)
