import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sppnet.layers.norms import SafeBatchNorm2d, conv_block, create_norm
from tests.helpers.batch_norm import randomize_batch_norms


@given(batch=st.integers(1, 3), rows=st.integers(1, 3), columns=st.integers(1, 3), training=st.booleans())
@settings(max_examples=40, deadline=None)
def test_safe_norm_equals_batch_norm_where_it_is_defined(batch: int, rows: int, columns: int, training: bool) -> None:
    safe, plain = SafeBatchNorm2d(3).double(), randomize_batch_norms(nn.BatchNorm2d(3).double())
    safe.load_state_dict(plain.state_dict())
    safe.train(training)
    plain.train(training and batch * rows * columns > 1)
    x = torch.randn(batch, 3, rows, columns, dtype=torch.float64)
    torch.testing.assert_close(safe(x), plain(x))
    torch.testing.assert_close(safe.state_dict(), plain.state_dict())


def test_number_of_groups_divides_the_channels() -> None:
    groups = {channels: create_norm("group", channels).num_groups for channels in (256, 48, 21, 7, 1)}
    assert groups == {256: 32, 48: 24, 21: 7, 7: 1, 1: 1}


def test_separable_block_is_a_depthwise_and_a_pointwise_convolution() -> None:
    block = conv_block(6, 10, 3, rate=2, separable=True)
    convs = [layer for layer in block if isinstance(layer, nn.Conv2d)]
    assert [(conv.groups, conv.kernel_size, conv.dilation) for conv in convs] == [
        (6, (3, 3), (2, 2)),
        (1, (1, 1), (1, 1)),
    ]
    assert [type(layer) for layer in block].count(nn.ReLU) == 2
    assert block(torch.randn(2, 6, 5, 4)).shape == (2, 10, 5, 4)
