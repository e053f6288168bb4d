"""Same seed and same plan: the same bits, ten times out of ten, whatever the timing."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import Tensor, nn

import poolrt


def pooled_bert(micro_batches: int, **options) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = zoo.bert(**options).train()
    torch.manual_seed(1)
    batch = zoo._text_batch()
    topology = poolrt.virtual(cards=2, memory="64MiB")
    return poolrt.shard(model, topology=topology, sample=batch, micro_batches=micro_batches), batch


def seeded_step(model: nn.Module, batch: dict[str, Tensor], seed: int) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model(**batch).loss
    loss.backward()
    return [loss.detach(), *(p.grad.cpu().clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_ten_runs_have_the_same_bits(rate: float):
    model, batch = pooled_bert(3, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate)
    first = seeded_step(model, batch, seed=5)
    for _ in range(10):
        again = seeded_step(model, batch, seed=5)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_layer_used_by_every_visit_is_summed_in_one_order():
    """ALBERT's one layer and T5's shared embedding gather gradients from several calls."""
    for make, batch_of in ((zoo.albert, zoo._text_batch), (zoo.t5, zoo._text_batch)):
        torch.manual_seed(0)
        model, batch = make().train(), batch_of()
        topology = poolrt.virtual(cards=3, memory="64MiB")
        poolrt.shard(model, topology=topology, sample=batch, micro_batches=3)
        first = seeded_step(model, batch, seed=5)
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(first, seeded_step(model, batch, seed=5), strict=True))


def test_another_seed_drops_others():
    model, batch = pooled_bert(3, hidden_dropout_prob=0.1)
    assert not torch.equal(seeded_step(model, batch, seed=5)[0], seeded_step(model, batch, seed=6)[0])


def test_micro_batches_drop_different_places():
    """Every micro-batch has its own seed: were it one for all, equal rows would give equal outputs."""
    model, batch = pooled_bert(3, hidden_dropout_prob=0.5)
    same_rows = {name: value[:1].expand_as(value).contiguous() for name, value in batch.items()}
    logits = model(**same_rows).logits
    assert not torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[2], logits[4])


def test_the_users_generators_are_left_alone_on_the_cards():
    model, batch = pooled_bert(3, hidden_dropout_prob=0.1)
    torch.vcard.manual_seed_all(7)
    before = [torch.vcard.get_rng_state(card) for card in (0, 1)]
    model(**batch).loss.backward()
    assert all(torch.equal(a, torch.vcard.get_rng_state(card)) for card, a in enumerate(before))


def test_sharding_with_a_sample_draws_nothing_from_the_users_generator():
    torch.manual_seed(3)
    expected = torch.rand(4)
    model, batch = zoo.bert(hidden_dropout_prob=0.1).train(), zoo._text_batch()
    topology = poolrt.virtual(cards=2, memory="64MiB")
    torch.manual_seed(3)
    poolrt.shard(model, topology=topology, sample=batch, micro_batches=3)
    assert torch.equal(torch.rand(4), expected)


class DrawsOnTheHost(nn.Module):
    """LayerDrop, as transformers writes it: one draw from the host's generator per layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if torch.rand([]) < 0.9:
                x = layer(x)
        return x


def test_a_forward_that_draws_on_the_host_stays_whole():
    topology = poolrt.virtual(cards=2, memory="64MiB")
    with pytest.warns(poolrt.SplitWarning, match="random numbers from torch's generator of the host"):
        model = poolrt.shard(DrawsOnTheHost(), topology=topology, sample=(torch.randn(8, 8),), micro_batches=4)
    plan = poolrt.report(model).plan
    assert plan.micro_batches == 1
    assert any("random numbers" in note for note in plan.notes)
