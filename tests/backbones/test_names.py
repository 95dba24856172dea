"""Names of networks, compared with the networks themselves."""

from sppnet.backbones.names import PAPER_BACKBONES
from sppnet.backbones.paper import PAPER_NETS


def test_names_are_those_of_the_paper_networks() -> None:
    assert tuple(PAPER_NETS) == PAPER_BACKBONES
