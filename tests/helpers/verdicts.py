"""Comparison of the verdicts of training and `sppnet check` on detection data."""

import re
from pathlib import Path

import pytest

from sppnet.data.check.run import check_data
from sppnet.data.formats.detection import DetectionData, read_detection
from sppnet.data.items import FATAL


def read_and_check(root: Path, split: str | None) -> DetectionData | None:
    """Read a data set as training does; None if it is refused. Assert that `sppnet check` has the same errors.

    Problems that training reports are also among those of the check, except for those of other splits.
    """
    check = check_data(root)
    fatal = {str(problem) for problem in check.problems if problem.kind in FATAL}
    if fatal:
        with pytest.raises(ValueError, match="|".join(map(re.escape, fatal))):
            read_detection(root, split)
        return None
    data = read_detection(root, split)
    reported = {str(problem) for problem in check.problems}
    assert {text for text in data.problems if "more problems of the kind" not in text} <= reported
    return data
