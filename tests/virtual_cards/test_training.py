"""Training on a card: the CPU's bits, and no more memory than the mathematics needs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

CARD = "vcard:1"


def train(build, inputs, device, *, steps=2, optimizer=torch.optim.AdamW, amp=None, **options):
    """Losses, gradients and parameters of a few steps."""
    torch.manual_seed(0)
    model = build().to(device)
    batch = [x.to(device) for x in inputs]
    steps_taken = optimizer(model.parameters(), lr=1e-2, **options)
    torch.manual_seed(1)
    seen = []
    for _ in range(steps):
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=amp is not None):
            output = model(*batch)
        loss = sum(part.float().pow(2).mean() for part in parts_of(output))
        loss.backward()
        seen += [loss.detach().cpu(), *(p.grad.to("cpu", copy=True) for p in model.parameters() if p.grad is not None)]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps_taken.step()
        steps_taken.zero_grad()
    return seen + [p.detach().cpu() for p in model.parameters()] + [b.cpu() for b in model.buffers()]


def parts_of(output):
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [part for value in values for part in parts_of(value) if part.is_floating_point()]


def assert_same_bits(build, *inputs, **options):
    on_host, on_card = (train(build, inputs, device, **options) for device in ("cpu", CARD))
    assert len(on_host) == len(on_card) > 3
    for number, (expected, found) in enumerate(zip(on_host, on_card, strict=True)):
        assert torch.equal(expected, found), f"tensor {number} of {len(on_host)} differs"


def bert(attention="sdpa", dropout=0.0):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        vocab_size=100,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation=attention,
    )
    return transformers.BertForMaskedLM(config)


TOKENS = torch.randint(0, 100, (4, 32), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(32) < torch.tensor([32, 20, 9, 1])[:, None]).long()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert(attention, dropout):
    assert_same_bits(lambda: bert(attention, dropout), TOKENS, MASK)


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}, {"amsgrad": True}])
def test_adamw(options):
    assert_same_bits(lambda: nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), torch.randn(5, 8), steps=3, **options)


@pytest.mark.parametrize("options", [{"momentum": 0.9, "foreach": True}, {"momentum": 0.9, "fused": True}])
def test_sgd(options):
    build = lambda: nn.Linear(8, 16)  # noqa: E731
    assert_same_bits(build, torch.randn(5, 8), steps=3, optimizer=torch.optim.SGD, **options)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolution_and_batch_norm(memory_format):
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)
        ).to(memory_format=memory_format)

    assert_same_bits(build, torch.randn(2, 3, 12, 12).to(memory_format=memory_format))


class Packed(nn.Module):
    """A recurrent layer over sequences of different lengths."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 4, 1]), batch_first=True)
        output, state = self.layer(packed)
        return nn.utils.rnn.pad_packed_sequence(output, batch_first=True)[0], state


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(layer, dropout, packed):
    def build():
        made = layer(5, 7, num_layers=2, dropout=dropout, bidirectional=True, batch_first=True)
        return Packed(made) if packed else made

    assert_same_bits(build, torch.randn(3, 6, 5))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells(cell):
    assert_same_bits(lambda: cell(5, 7), torch.randn(3, 5))


def test_a_recurrent_layer_under_autocast():
    assert_same_bits(lambda: nn.LSTM(5, 7), torch.randn(3, 6, 5), amp=torch.bfloat16)


def test_a_recurrent_layer_keeps_autograds_promises():
    layer, x = nn.LSTM(3, 4).to(CARD), torch.randn(2, 1, 3, device=CARD, requires_grad=True)
    output = layer(x)[0]
    output.sum().backward(retain_graph=True)
    first = x.grad.clone()
    output.sum().backward()
    assert torch.equal(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()
    with pytest.raises(RuntimeError, match="first derivatives"):
        torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
    changed = layer(x)[0]
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed.sum().backward()
    with torch.no_grad():
        assert not layer(x)[0].requires_grad
    with torch.inference_mode():
        assert layer(x)[0].is_inference()


def test_a_recurrent_layer_frees_its_graph():
    layer, x = nn.LSTM(16, 16).to(CARD), torch.randn(64, 8, 16, device=CARD)
    layer(x)[0].sum().backward()
    before = torch.vcard.memory_allocated(1)
    loss = layer(x)[0].sum()
    assert torch.vcard.memory_allocated(1) > before + 64 * 8 * 16 * 4
    loss.backward()
    assert torch.vcard.memory_allocated(1) == before + 512


QUERY = torch.randn(2, 4, 10, 8, generator=torch.Generator().manual_seed(0))
ATTENTION_CALLS = {
    "plain": {},
    "causal": {"is_causal": True},
    "float mask": {"attn_mask": torch.randn(10, 10, generator=torch.Generator().manual_seed(1))},
    "bool mask": {"attn_mask": torch.ones(10, 10, dtype=torch.bool).tril()},
    "scale": {"scale": 0.5},
    "dropout": {"dropout_p": 0.5},
}


@pytest.mark.parametrize("name", ATTENTION_CALLS)
def test_attention_takes_the_cpus_path(name):
    results = []
    for device in ("cpu", CARD):
        torch.manual_seed(0)
        query = QUERY.to(device, copy=True).requires_grad_()
        arguments = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in ATTENTION_CALLS[name].items()}
        output = F.scaled_dot_product_attention(query, query + 1, query * 2, **arguments)
        node = output.grad_fn.name()
        output.pow(2).sum().backward()
        results.append((node, output.detach().cpu(), query.grad.cpu()))
    (host_node, *on_host), (card_node, *on_card) = results
    assert host_node == card_node
    assert ("FlashAttentionForCpu" in card_node) == (name != "dropout")
    assert all(torch.equal(a, b) for a, b in zip(on_host, on_card, strict=True))


def test_attention_needs_no_memory_of_the_square_of_the_length():
    query = torch.randn(1, 1, 2048, 8, device=CARD)
    before = torch.vcard.memory_allocated(1)
    torch.vcard.reset_peak_memory_stats(1)
    F.scaled_dot_product_attention(query, query, query)
    assert torch.vcard.max_memory_allocated(1) - before < 2048 * 2048 * 4 / 4
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        F.scaled_dot_product_attention(query, query, query)
    assert torch.vcard.max_memory_allocated(1) - before > 2048 * 2048 * 4


def test_autocast_casts_as_for_an_accelerator():
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    with torch.autocast("vcard", dtype=torch.bfloat16):
        product = a.to(CARD) @ b.to(CARD)
        assert torch.softmax(product, -1).dtype == torch.float32
        assert torch.is_autocast_enabled("vcard")
        with torch.autocast("vcard", enabled=False):
            assert (a.to(CARD) @ b.to(CARD)).dtype == torch.float32
    assert product.dtype == torch.bfloat16
    assert torch.equal(product.cpu(), a.bfloat16() @ b.bfloat16())


def test_autocast_trains():
    layer, twin = nn.Linear(8, 4).to(CARD), nn.Linear(8, 4)
    twin.load_state_dict(copy.deepcopy(layer).cpu().state_dict())
    x = torch.randn(5, 8)
    with torch.autocast("vcard", dtype=torch.bfloat16):
        loss = layer(x.to(CARD)).float().sum()
    loss.backward()
    F.linear(x.bfloat16(), twin.weight.bfloat16(), twin.bias.bfloat16()).float().sum().backward()
    assert torch.equal(layer.weight.grad.cpu(), twin.weight.grad)
    assert layer.weight.grad.dtype == torch.float32


def test_gradients_are_scaled_and_checked():
    scaler = torch.amp.GradScaler("vcard", init_scale=8.0)
    layer = nn.Linear(4, 4).to(CARD)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    scaler.scale(layer(torch.full((1, 4), float("inf"), device=CARD)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(layer.weight, before)
    assert scaler.get_scale() == 4.0


def test_gradients_cross_cards():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    x = torch.randn(3, 4)
    second(first(x).relu()).sum().backward()
    expected = [p.grad for p in (*first.parameters(), *second.parameters())]
    first, second = copy.deepcopy(first).to("vcard:0"), copy.deepcopy(second).to("vcard:1")
    first.zero_grad()
    second.zero_grad()
    second(first(x.to("vcard:0")).relu().to("vcard:1")).sum().cpu().backward()
    found = [p.grad.cpu() for p in (*first.parameters(), *second.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
