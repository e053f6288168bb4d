"""A link between two cards that changes one byte of a copy of 64 MiB is never used by a model.

shard     proves the links: 0 -> 1 lies, 1 -> 0 is good
steps     0 -> host -> 1 ,  1 -> 0
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import poolrt
from poolrt.topology.topology import Topology
from poolrt.transfer import bounce, routes
from poolrt.units import MIB
from poolrt.virtual_cards.links import are_paced, carried, clear_faults, set_fault

LIE = {"at_least_nbytes": 64 * MIB}


@pytest.fixture
def paced() -> Iterator[Topology]:
    """Two cards that stand for a bridged pair."""
    yield poolrt.virtual(cards=2, memory="1GiB", link="nvlink3x4", paced=True)
    poolrt.virtual(cards=2, memory="1GiB")
    routes.current().forget("vcard")
    bounce.release()


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(4)))


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    model(x).square().sum().backward()
    return [parameter.grad.cpu() for parameter in model.parameters() if parameter.grad is not None]


def test_a_peer_that_changes_one_byte_in_64_mib_is_never_used(
    paced: Topology, caplog: pytest.LogCaptureFixture, one_thread: None
) -> None:
    set_fault(0, 1, "lies", **LIE)
    x = torch.randn(8, 32)
    plain = make_model()
    expected = gradients(plain, x)
    with caplog.at_level(logging.WARNING, "poolrt"):
        model = poolrt.shard(copy.deepcopy(plain), topology=paced, sample=x, micro_batches=2)
    there, back = carried(0, 1), carried(1, 0)
    for _ in range(2):
        found = gradients(model, x)
    assert carried(0, 1) == there
    assert carried(1, 0) > back
    torch.testing.assert_close(found, expected)
    (line,) = [line for line in caplog.messages if "card 0 to card 1" in line]
    assert "64 MiB" in line
    assert "1 byte was wrong" in line


def test_a_plan_from_before_the_lie_was_found_is_refused_with_the_reason(paced: Topology) -> None:
    x = torch.randn(8, 32)
    plan = poolrt.plan(make_model(), x, paced)
    set_fault(0, 1, "lies", **LIE)
    with pytest.raises(poolrt.errors.PlanError, match="proved to be no good"):
        poolrt.shard(make_model(), topology=paced, sample=x, plan=plan)
    clear_faults()
    poolrt.shard(make_model(), topology=paced, sample=x, plan=plan)


def test_a_card_whose_way_from_the_host_lies_is_refused(paced: Topology) -> None:
    set_fault(None, 1, "lies", **LIE)
    with pytest.raises(poolrt.errors.DriverError, match="card 1"):
        poolrt.shard(make_model(), topology=paced, sample=torch.randn(8, 32))


def test_cards_that_stand_for_themselves_have_nothing_to_prove(paced: Topology) -> None:
    assert are_paced()
    cards = poolrt.virtual(cards=2, memory="64MiB")
    assert not are_paced()
    poolrt.shard(make_model(), topology=cards)
    assert carried(0, 1) == carried(1, 0) == (0, 0)


def test_a_pools_tensors_keep_off_a_peer_that_lies(paced: Topology) -> None:
    with poolrt.Pool(paced) as pool:
        assert [extent.card for extent in pool.extents(pool.empty(1280 * MIB, dtype=torch.uint8, home=0))] == [0, 1]
    set_fault(0, 1, "lies", **LIE)
    with poolrt.Pool(paced) as pool:
        for home in (0, 1):
            with pytest.raises(torch.OutOfMemoryError):
                pool.empty(1280 * MIB, dtype=torch.uint8, home=home)
