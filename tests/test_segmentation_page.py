"""The code and the figures of docs/segmentation.md that need no data."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "segmentation.md"


@pytest.mark.filterwarnings("ignore:ASPP")
def test_live_taps_are_printed_as_the_page_says() -> None:
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "explain" in block
    )
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(code, {})
    expected = re.findall(r"^# (.*)$", code, re.MULTILINE)
    assert printed.getvalue().splitlines() == expected
