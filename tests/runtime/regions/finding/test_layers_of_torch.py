"""Embedding, row-split linear layer and nn.MultiheadAttention in pieces, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from poolrt.planning.split import Split
from poolrt.runtime.regions.finding.forms import attention_of, embedding_of
from poolrt.runtime.regions.finding.verify import difference
from poolrt.runtime.regions.plan import RowLinear, parameter_splits
from poolrt.runtime.regions.running.build import split_forward
from poolrt.runtime.regions.running.forked import gathered, sliced
from poolrt.runtime.regions.running.parted import part_together

HOST = [torch.device("cpu")] * 2
pytestmark = pytest.mark.usefixtures("one_thread")


def in_pieces(module, rewrite):
    """The split forward, and a function that gathers a parameter's gradient."""
    made = {}
    for name, split in parameter_splits(rewrite).items():
        parameter = module.get_parameter(name)
        pieces = [sliced(parameter.detach(), split, card).clone().requires_grad_() for card in range(split.cards)]
        made[id(parameter)] = pieces, split, parameter

    def gradient(name):
        pieces, split, parameter = made[id(module.get_parameter(name))]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in pieces]
        return gathered(grads, split, parameter.detach())

    return split_forward(module, rewrite, HOST, lambda parameter: made[id(parameter)][0]), gradient


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


# ---- embedding


@pytest.mark.parametrize("padding", [None, 0, 5])
def test_an_embedding_by_rows(padding):
    table = nn.Embedding(7, 4, padding_idx=padding).double()
    forward, gradient = in_pieces(table, embedding_of(table, [1, 1]))
    ids = torch.tensor([[0, 5, 6], [3, 3, 4]])
    ours, theirs = forward(ids), table(ids)
    assert torch.equal(ours, theirs)
    weight = torch.randn_like(theirs)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert_close(gradient("weight"), table.weight.grad)


class Scaled(nn.Embedding):
    """As in Gemma: what was looked up is scaled by a buffer."""

    def __init__(self) -> None:
        super().__init__(7, 4, padding_idx=0)
        self.register_buffer("scale", torch.tensor(3.0, dtype=torch.float64))

    def forward(self, ids):
        return super().forward(ids) * self.scale


def test_an_embedding_that_scales_its_rows():
    table = Scaled().double()
    call = ((torch.tensor([[0, 5, 6], [3, 3, 4]]),), {})
    assert difference(table, call, [embedding_of(table, [1, 1])], HOST) is None


def test_a_row_that_is_not_a_number_stays_where_it_is():
    table = nn.Embedding(4, 2)
    with torch.no_grad():
        table.weight[0] = float("nan")
    forward, _ = in_pieces(table, embedding_of(table, [1, 1]))
    assert torch.isfinite(forward(torch.tensor([3, 2]))).all()


@pytest.mark.parametrize("wrong", [7, -1])
def test_an_id_that_is_no_row_is_an_error_as_with_torch(wrong):
    table = nn.Embedding(7, 4)
    forward, _ = in_pieces(table, embedding_of(table, [1, 1]))
    with pytest.raises(IndexError, match=str(wrong)):
        forward(torch.tensor([0, wrong]))


# ---- row-split linear


def test_a_row_split_layer_takes_parts_or_a_whole_input_and_adds_the_bias_once():
    layer = nn.Linear(5, 3).double()
    forward, gradient = in_pieces(layer, RowLinear(module="", split=Split.from_counts([3, 2], dim=1)))
    leaves = [torch.randn(4, size, dtype=torch.float64, requires_grad=True) for size in (3, 2)]
    whole = torch.cat([leaf.detach() for leaf in leaves], -1).requires_grad_()
    expected = layer(whole)
    expected.square().sum().backward()
    for given in (part_together(leaves, HOST[0]), whole.detach()):
        assert_close(forward(given), expected)
    layer.weight.grad, first = None, layer.weight.grad
    layer.bias.grad, bias = None, layer.bias.grad
    forward(part_together(leaves, HOST[0])).square().sum().backward()
    assert_close(gradient("weight"), first)
    assert_close(layer.bias.grad, bias)
    assert_close(torch.cat([leaf.grad for leaf in leaves], -1), whole.grad)


def test_pieces_of_several_ranges_take_their_columns():
    layer = nn.Linear(6, 3).double()
    split = Split(dim=1, pieces=(((0, 1), (3, 5)), ((1, 3), (5, 6))))
    forward, _ = in_pieces(layer, RowLinear(module="", split=split))
    x = torch.randn(2, 6, dtype=torch.float64)
    assert_close(forward(x), layer(x))
    assert_close(forward(part_together(x.split([3, 3], -1), HOST[0])), layer(x))


# ---- attention

MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.tensor([[False, False, True], [False, False, False]])},
    "causal": {"attn_mask": torch.ones(4, 3, dtype=torch.bool).triu(1)},
    "numbers": {"attn_mask": torch.randn(4, 3, dtype=torch.float64)},
    "per head": {"attn_mask": torch.randn(8, 4, 3, dtype=torch.float64)},
    "both": {
        "attn_mask": torch.ones(4, 3, dtype=torch.bool).triu(1),
        "key_padding_mask": torch.tensor([[False, True, False], [False, False, False]]),
    },
    "hint": {"attn_mask": torch.ones(4, 3, dtype=torch.bool).triu(1), "is_causal": True},
}
WEIGHTS = [{"need_weights": False}, {}, {"average_attn_weights": False}]


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("options", WEIGHTS, ids=["output", "mean weights", "weights"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_by_heads(masks, options, batch_first):
    attention = nn.MultiheadAttention(8, 4, batch_first=batch_first).double()
    nn.init.normal_(attention.in_proj_bias)
    forward, gradient = in_pieces(attention, attention_of(attention, [3, 1]))
    query, keys = (torch.randn(2, length, 8, dtype=torch.float64, requires_grad=True) for length in (4, 3))
    given = [tensor if batch_first else tensor.transpose(0, 1) for tensor in (query, keys, keys)]
    found = []
    for function in (attention, forward):
        query.grad = keys.grad = attention.out_proj.bias.grad = None
        output, weights = function(*given, **MASKS[masks], **options)
        (output.square().sum() + (0 if weights is None else weights.square().sum())).backward()
        found.append((output.detach(), weights, query.grad, keys.grad, attention.out_proj.bias.grad))
    for theirs, ours in zip(*found, strict=True):
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            assert_close(ours, theirs)
    for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight"):
        assert_close(gradient(name), attention.get_parameter(name).grad)


def test_attention_without_a_batch():
    attention = nn.MultiheadAttention(8, 2)
    forward, _ = in_pieces(attention, attention_of(attention, [1, 1]))
    x = torch.randn(3, 8)
    for ours, theirs in zip(forward(x, x, x), attention(x, x, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_causal_hint_needs_a_mask_as_with_torch():
    attention = nn.MultiheadAttention(8, 2)
    forward, _ = in_pieces(attention, attention_of(attention, [1, 1]))
    x = torch.randn(3, 1, 8)
    for function in (attention, forward):
        with pytest.raises(RuntimeError):
            function(x, x, x, need_weights=False, is_causal=True)
