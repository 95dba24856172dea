import re

import pytest

from sppnet.demo.page import PAGE, REGIONS, SECTION, STYLE
from tests.helpers.html_page import Page

TEMPLATES = {"page": PAGE, "section": SECTION, "regions": REGIONS}
VOID = {"meta", "img"}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_tags_are_closed_in_order(template: str) -> None:
    open_tags: list[str] = []
    for slash, tag in re.findall(r"<(/?)(\w+)", template):
        if slash:
            assert open_tags.pop() == tag
        elif tag not in VOID:
            open_tags.append(tag)
    assert open_tags == []


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_every_class_has_a_style(template: str) -> None:
    for tag in ("div", "p", "span"):
        for name in " ".join(Page(template).values(tag, "class")).split():
            assert f".{name}" in STYLE
