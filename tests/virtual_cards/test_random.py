"""One generator per card; a card and the CPU with the same seed draw the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def test_a_seed_reaches_every_card_and_each_draws_for_itself():
    torch.manual_seed(5)
    on_host = torch.rand(100)
    torch.manual_seed(5)
    on_cards = [torch.rand(100, device=f"vcard:{card}") for card in range(2)]
    assert all(torch.equal(drawn.cpu(), on_host) for drawn in on_cards)
    assert torch.equal(torch.rand(100), on_host)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: F.dropout(x, 0.3),
        lambda x: F.dropout2d(x[None, None], 0.5),
        lambda x: F.alpha_dropout(x, 0.2),
        lambda x: torch.bernoulli(x / 3),
        lambda x: torch.multinomial(x.abs() + 1, 2),
        lambda x: torch.randn_like(x),
        lambda x: torch.randint(0, 1000, (5,), device=x.device),
        lambda x: torch.randperm(100, device=x.device),
        lambda x: torch.empty_like(x).exponential_(),
        lambda x: F.rrelu(x, training=True),
        lambda x: F.gumbel_softmax(x),
        lambda x: torch.normal(x, 1.0),
        lambda x: torch.native_dropout(x, 0.4, True)[1],
        lambda x: torch.poisson(x),
    ],
)
def test_draws_are_the_cpus_and_leave_the_cpu_alone(draw):
    x = torch.linspace(0.1, 2.9, 12).view(3, 4)
    torch.manual_seed(1)
    on_host = draw(x)
    torch.manual_seed(1)
    on_card = draw(x.to("vcard:1"))
    assert torch.equal(on_card.cpu(), on_host)
    untouched = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(untouched, torch.rand(1))


def test_generators_of_ones_own():
    first, second = torch.Generator("vcard:1").manual_seed(3), torch.Generator("vcard:1").manual_seed(3)
    assert first.device == torch.device("vcard:1")
    assert first.initial_seed() == 3
    drawn = torch.rand(8, device="vcard:1", generator=first)
    assert torch.equal(drawn, torch.rand(8, device="vcard:1", generator=second))
    state = first.get_state()
    again = first.clone_state()
    drawn = torch.rand(8, device="vcard:1", generator=first)
    first.set_state(state)
    assert torch.equal(drawn, torch.rand(8, device="vcard:1", generator=first))
    assert torch.equal(drawn, torch.rand(8, device="vcard:1", generator=again))


def test_states_are_kept_and_restored():
    state = torch.vcard.get_rng_state(1)
    other = torch.vcard.get_rng_state("vcard:0")
    drawn = torch.rand(4, device="vcard:1")
    torch.vcard.set_rng_state(state, 1)
    assert torch.equal(drawn, torch.rand(4, device="vcard:1"))
    assert torch.equal(other, torch.vcard.get_rng_state(0))
    with torch.random.fork_rng(devices=[0, 1], device_type="vcard"):
        forked = torch.rand(4, device="vcard:1")
    assert torch.equal(forked, torch.rand(4, device="vcard:1"))


def test_seeds():
    torch.vcard.manual_seed_all(11)
    assert [generator.initial_seed() for generator in torch.vcard.default_generators] == [11, 11]
    with torch.vcard.device(1):
        torch.vcard.manual_seed(12)
        assert torch.vcard.initial_seed() == 12
        assert torch.vcard.seed() == torch.vcard.initial_seed()
    assert torch.vcard.initial_seed() == 11


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_dropout_is_recomputed_alike(use_reentrant):
    def loss(x, weight, checkpointed):
        def body(x):
            return F.dropout(F.gelu(F.dropout(x, 0.5) @ weight), 0.5)

        torch.manual_seed(3)
        return (checkpoint(body, x, use_reentrant=use_reentrant) if checkpointed else body(x)).pow(2).sum()

    gradients = []
    for device, checkpointed in (("cpu", False), ("vcard:1", False), ("vcard:1", True)):
        torch.manual_seed(0)
        x = torch.randn(16, 16).to(device).requires_grad_()
        weight = torch.randn(16, 16).to(device).requires_grad_()
        loss(x, weight, checkpointed).backward()
        gradients.append((x.grad.cpu(), weight.grad.cpu()))
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))
