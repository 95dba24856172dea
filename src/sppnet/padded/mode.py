"""Exact answers for images of different sizes padded into one batch, from networks that know nothing of it.

While :class:`PaddedBatch` is active, each torch function that a network calls on the batch is seen, and what is known
of the padding goes along with the tensors: which cells belong to images, and whether the others are zero. Layers that
look at neighbours get what they would see at the end of the image alone; means run over valid cells only. A function
for which no rule is known is refused, with the layer that called it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sppnet.padded.ledger import Areas, Ledger, PaddingError, Valid, cleared_copy
from sppnet.padded.rules import AFTER_PADDING, READS, RULES, plain_name


class PaddedBatch(TorchFunctionMode):
    """While active, a network's answers for each image of a padded batch are those that the image gets alone.

    Batch norm in training takes its statistics over the valid cells of the batch, of all processes where there are
    several.

    Args:
        network: what is going to be called.
        same: whether it pads by TensorFlow's SAME rule, whose amounts depend on the size of each image.
    """

    def __init__(self, network: nn.Module, same: bool) -> None:
        super().__init__()
        self._ledger = Ledger(network, same)

    def enter(self, x: Float[Tensor, "n c h w"], areas: Sequence[tuple[int, int]]) -> Float[Tensor, "n c h w"]:
        """The batch with zeros in its padding, whatever was there; what comes of it is followed.

        Args:
            x: images at the top left, each with padding below and to the right.
            areas: (height, width) of each image, within that of `x`.
        """
        areas = tuple((height, width) for height, width in areas)
        outside = self._ledger.outside(x, areas)
        return self._ledger.mark(x if outside is None else cleared_copy(x, outside), Valid(areas, clean=True))

    def areas(self, x: Float[Tensor, "n c h w"]) -> Areas:
        """Valid (rows, columns) of each image of a map that came from the batch.

        Raises:
            PaddingError: the map came from elsewhere.
        """
        if not self._ledger.follows(x) or self._ledger.known(x).dims != (2, 3):
            raise PaddingError("sizes: the network's map does not follow from the images of the batch")
        return self._ledger.known(x).areas

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        padded = any(self._ledger.deferred(tensor) is not None for tensor in tensors)
        if not padded and not any(self._ledger.follows(tensor) for tensor in tensors):
            return func(*args, **kwargs)
        name = plain_name(func)
        if padded and name in READS:
            return func(*args, **kwargs)
        rule = (AFTER_PADDING if padded else RULES).get(name)
        if rule is None:
            why = "comes after a padding" if padded else "may look at other cells, and no rule is known for it"
            raise self._ledger.refusal(f"{name} {why}")
        return rule(self._ledger, func, *args, **kwargs)


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
