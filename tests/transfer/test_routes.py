"""Which way bytes go, and how a pair that failed is avoided."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

import pytest
import torch

import poolrt
from poolrt.errors import ConfigurationError
from poolrt.topology.build import logical_topology, virtual_topology
from poolrt.topology.topology import Topology
from poolrt.transfer.move import move
from poolrt.transfer.routes import HOST, PairChoice, Routes

GIB = 1 << 30
FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")


def two_gpus(link: str | None = None) -> Topology:
    joined = virtual_topology([GIB, GIB], link)
    cards = (replace(card, kind="cuda", device=f"cuda:{card.index}") for card in joined.cards)
    return Topology(cards=tuple(cards), links=joined.links)


def test_a_topology_says_what_may_be() -> None:
    linked, apart = Routes(two_gpus("nvlink3x4")), Routes(two_gpus("host"))
    assert linked.between(FIRST, SECOND, 1) == "P2P"
    assert apart.between(FIRST, SECOND, 1) == "HOST"
    assert linked.between(FIRST, FIRST, 1) == apart.between(SECOND, SECOND, 1) == "LOCAL"


def test_where_one_end_is_the_host_bytes_go_through_it() -> None:
    routes = Routes(two_gpus())
    assert routes.between(HOST, FIRST, 8) == routes.between(FIRST, HOST, 8) == "HOST"


def test_shares_of_one_gpu_copy_within_it() -> None:
    routes = Routes(logical_topology("cuda:0", [GIB, GIB]))
    device = torch.device("cuda:0")
    assert routes.between(device, device, 1) == "LOCAL"


def test_facts_choose_by_size() -> None:
    choice = PairChoice(kind_by_size=((0, "P2P"), (1000, "HOST"), (5000, "P2P")))
    assert [choice.at(n) for n in (0, 999, 1000, 4999, 5000)] == ["P2P", "P2P", "HOST", "HOST", "P2P"]
    routes = Routes(two_gpus(), {(0, 1): choice})
    assert routes.between(FIRST, SECOND, 1000) == "HOST"
    assert routes.between(SECOND, FIRST, 1000) == "P2P"


@pytest.mark.parametrize("sizes", [(), (5,), (0, 0), (0, 7, 3)])
def test_sizes_that_do_not_ascend_from_0_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError):
        PairChoice(kind_by_size=tuple((nbytes, "P2P") for nbytes in sizes))


def test_a_lost_pair_goes_through_the_host_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    routes = Routes(two_gpus())
    with caplog.at_level(logging.WARNING, logger="poolrt"):
        threads = [threading.Thread(target=routes.lose, args=(FIRST, SECOND, "it broke\nwith a trace")) for _ in "1234"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (record,) = caplog.records
    assert all(word in record.getMessage() for word in ("cuda:0", "cuda:1", "it broke"))
    assert "trace" not in record.getMessage()
    assert routes.between(FIRST, SECOND, 1) == "HOST"
    assert routes.between(SECOND, FIRST, 1) == "P2P"
    assert routes.is_lost(FIRST, SECOND)


def test_what_is_lost_stays_lost_when_more_is_learned() -> None:
    topology = two_gpus()
    routes = Routes(topology)
    routes.lose(FIRST, SECOND, "gone")
    routes.learn(topology)
    assert routes.between(FIRST, SECOND, 1) == "HOST"


def test_new_devices_under_old_names_have_lost_nothing() -> None:
    routes = Routes(two_gpus("host"))
    routes.lose(FIRST, SECOND, "gone")
    routes.forget("cuda")
    routes.learn(two_gpus())
    assert routes.between(FIRST, SECOND, 1) == "P2P"


def test_a_link_between_gpus_that_nobody_has_proven_is_not_taken() -> None:
    assert Routes().between(FIRST, SECOND, 1) == "HOST"


def test_virtual_cards_that_no_topology_names_are_asked_of_their_driver() -> None:
    cards = poolrt.virtual(cards=3, memory="1MiB", link="host").cards
    first, third = torch.device(cards[0].device), torch.device(cards[2].device)
    assert Routes().between(first, third, 1) == "HOST"
    poolrt.virtual(cards=3, memory="1MiB")
    assert Routes().between(first, third, 1) == "P2P"
    assert Routes().between(first, FIRST, 1) == "HOST"


def test_other_kinds_of_device_are_torchs_own_affair() -> None:
    device = torch.device(poolrt.virtual(cards=1, memory="1MiB").cards[0].device)
    on_meta = move(torch.ones(3, device=device), torch.device("meta"))
    assert (on_meta.device.type, on_meta.shape) == ("meta", (3,))
    with pytest.raises(NotImplementedError):
        move(on_meta, device)
