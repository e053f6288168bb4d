"""Split layers through `shard` on one CUDA GPU that plays several cards: run by `make gpu-check`, passed over without.

Shares of one GPU are not held to their sizes while layers are split, and share the GPU's one generator. So memory is
asserted of both together, and that they drop other entries is asserted of the keys.
"""

from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

import poolrt
from poolrt.runtime.regions.running.keyed import on_keyed_cards
from poolrt.runtime.sharded.parameter import ShardedParameter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

GPU = "cuda:0"
RATE = 0.1
Batch = dict[str, Tensor]


def bert(rate: float, width: int = 128) -> nn.Module:
    config = BertConfig(
        attn_implementation="eager",  # fused attention adds up in any order in backward
        vocab_size=512,
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * width,
        hidden_dropout_prob=rate,
        attention_probs_dropout_prob=rate,
    )
    return BertForMaskedLM(config).train()


def llama(rate: float) -> nn.Module:
    config = LlamaConfig(
        attn_implementation="eager",
        vocab_size=512,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        attention_dropout=rate,
        use_cache=False,
    )
    return LlamaForCausalLM(config).train()


MODELS = {"bert": bert, "llama": llama}
each_model = pytest.mark.parametrize("name", MODELS)


def make_batch(samples: int = 4, length: int = 32) -> Batch:
    """Without padding; embeddings add their gradients up in any order unless ids differ."""
    ids = torch.stack([torch.randperm(512, device=GPU)[:length] for _ in range(samples)])
    return {"input_ids": ids, "labels": ids.clone()}


def split(model: nn.Module, batch: Batch, cards: int = 2) -> nn.Module:
    topology = poolrt.logical(GPU, cards=cards, memory="4GiB")
    return poolrt.shard(model, topology=topology, sample=batch, tensor_parallel=cards)


def gradients(model: nn.Module, batch: Batch, seed: int = 7) -> Batch:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    model(**batch).loss.backward()
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def deterministic():
    """Kernels that add up in one order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
        torch.use_deterministic_algorithms(False)


@each_model
@pytest.mark.parametrize("cards", [2, 4])
def test_three_steps_are_those_of_one_card(name: str, cards: int) -> None:
    if (name, cards) == ("llama", 4):
        pytest.skip("two key-value heads")
    reference = MODELS[name](0.0).to(GPU).double()
    model, batch = copy.deepcopy(reference), make_batch()
    split(model, batch, cards)
    losses: list[list[float]] = [[], []]
    for each, found in zip((reference, model), losses, strict=True):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = each(**batch).loss
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6), "both compute parts in fp32"
    for (path, expected), actual in zip(reference.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual.detach().cpu(), expected.detach().cpu(), rtol=1e-5, atol=1e-7, msg=path)


@each_model
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_repeat_what_was_dropped(name: str, reentrant: bool, deterministic: None) -> None:
    model, batch = MODELS[name](RATE).to(GPU), make_batch()
    split(model, batch)
    expected = gradients(model, batch)
    other = gradients(model, batch, seed=8)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for _ in range(5):
        found = gradients(model, batch)
        assert found.keys() == expected.keys()
        for path, gradient in expected.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(found[path], gradient, rtol=1e-4, atol=1e-6 * scale, msg=path)
    assert any(not torch.allclose(other[path], expected[path], rtol=0.1) for path in expected), "masks follow the seed"


def test_cards_of_one_generator_drop_each_their_own_and_leave_it_one_draw_further() -> None:
    devices = [torch.device(GPU)] * 2
    torch.manual_seed(5)
    generator = torch.cuda.default_generators[0]
    seed, offset = generator.initial_seed(), generator.get_offset()
    (first, second), drawn = on_keyed_cards(lambda card: torch.rand(100, device=GPU), devices)
    assert drawn
    assert not torch.equal(first, second)
    assert (generator.initial_seed(), generator.get_offset()) == (seed, offset + 4)
    torch.manual_seed(5)
    again, _ = on_keyed_cards(lambda card: torch.rand(100, device=GPU), devices)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])


def test_keys_wait_for_no_kernel() -> None:
    """They are drawn while the GPU is busy, and seen to be done before it is."""
    devices = [torch.device(GPU)] * 2
    x = torch.ones(100, device=GPU)
    torch.nn.functional.dropout(x)
    done = torch.cuda.Event()
    torch.cuda._sleep(1_000_000_000)
    done.record()
    on_keyed_cards(lambda card: torch.nn.functional.dropout(x), devices)
    assert not done.query(), "half a second of work lies before"
    torch.cuda.synchronize()


def test_while_a_graph_captures_nothing_is_keyed() -> None:
    devices, x = [torch.device(GPU)] * 2, torch.ones(100, device=GPU)
    on_keyed_cards(lambda card: x * 2, devices)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results, _ = on_keyed_cards(lambda card: torch.nn.functional.dropout(x), devices)
    graph.replay()
    assert all(set(result.unique().tolist()) <= {0.0, 2.0} for result in results)


def test_both_shares_together_need_what_the_plan_says() -> None:
    """No split parameter lies anywhere whole. 64 MiB are for the workspaces of CUDA's libraries."""
    model, batch = bert(0.0, width=1024), make_batch(8, 128)
    nbytes = sum(p.nbytes for p in model.parameters())
    gc.collect()
    before = torch.cuda.memory_allocated()
    split(model, batch)
    assert sum(isinstance(p, ShardedParameter) for p in model.parameters()) > 0
    assert torch.cuda.memory_allocated() - before < 1.05 * nbytes + 2**20, "pieces, and copies of small buffers"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    predicted = sum(card.predicted_peak_bytes for card in poolrt.report(model).plan.cards)
    assert torch.cuda.max_memory_allocated() - before < 1.1 * predicted + 64 * 2**20
