import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.planning.demand import Demand, PooledLayer
from poolrt.planning.granules import GRANULE
from poolrt.planning.plan import PredictedBytes
from poolrt.planning.pooled_bytes import PeerBytes, Tiers
from poolrt.planning.spill import distribute
from poolrt.planning.ways import Ways
from poolrt.topology.build import logical_topology, virtual_topology
from poolrt.topology.catalog import link_preset
from poolrt.topology.topology import Topology

GIB = 1 << 30
NOTHING = PredictedBytes()


def spilling(room, *, weights=(), optimizer=0, temporaries=0):
    return Demand(
        spills=True,
        stays=NOTHING,
        stepping=NOTHING,
        room=room * GRANULE,
        layers=tuple(PooledLayer(position=p, nbytes=nbytes * GRANULE) for p, nbytes in enumerate(weights)),
        optimizer=optimizer * GRANULE,
        temporaries=temporaries * GRANULE,
    )


def giving(room):
    return Demand(spills=False, stays=NOTHING, stepping=NOTHING, room=room * GRANULE)


def box(cards, **links):
    """Cards without links but those named: c01="nvlink3x4" joins cards 0 and 1 in both directions."""
    ends = {tuple(map(int, pair[1:])): link_preset(name) for pair, name in links.items()}
    both = [preset.link(*way) for pair, preset in ends.items() for way in (pair, pair[::-1])]
    return Ways(Topology(cards=virtual_topology([GIB] * cards).cards, links=tuple(both)))


def granules(tiers):
    """(home, {peer: there}, host) in granules."""
    return tiers.home // GRANULE, {x.card: x.nbytes // GRANULE for x in tiers.peers}, tiers.host // GRANULE


def test_home_then_peer_then_host():
    """
    card 0  |# # #|                two layers of one granule, then 4 of state
    card 1        |- -|            room for two, and a link
    host              |- ...       the rest
    """
    first, second = distribute([spilling(3, weights=(1, 1), optimizer=4), giving(2)], box(2, c01="nvlink3x4"))
    assert granules(first.pooled.weights) == (2, {}, 0)
    assert granules(first.pooled.optimizer) == (1, {1: 2}, 1)
    assert (first.limit, first.guests) == (3 * GRANULE, 0)
    assert (second.limit, second.guests) == (2 * GRANULE, 2 * GRANULE)
    assert [(position, granules(tiers)) for position, tiers in first.layers] == [(0, (1, {}, 0)), (1, (1, {}, 0))]


def test_weights_lie_nearer_than_state_and_that_nearer_than_temporaries():
    demands = [spilling(1, weights=(2,), optimizer=2, temporaries=2), giving(2)]
    pooled = distribute(demands, box(2, c01="pcie4x16"))[0].pooled
    assert granules(pooled.weights) == (1, {1: 1}, 0)
    assert granules(pooled.optimizer) == (0, {1: 1}, 1)
    assert granules(pooled.temporaries) == (0, {}, 2)
    assert granules(pooled.all) == (1, {1: 2}, 3)


@pytest.mark.parametrize("link", [None, "host"])
def test_a_peer_without_a_link_gives_nothing(link):
    ways = box(2, c01=link) if link else box(2)
    first, second = distribute([spilling(0, optimizer=1), giving(9)], ways)
    assert granules(first.pooled.optimizer) == (0, {}, 1)
    assert (second.limit, second.guests) == (0, 0)


def test_the_nearest_peer_comes_first():
    ways = box(3, c01="pcie3x16", c02="nvlink3x4")
    assert ways.peers[0] == [2, 1]
    first = distribute([spilling(0, optimizer=3), giving(9), giving(2)], ways)[0]
    assert granules(first.pooled.optimizer) == (0, {2: 2, 1: 1}, 0)


def test_who_has_fewer_peers_to_ask_asks_first():
    # Card 0 reaches both that have room, card 1 only one of them.
    ways = box(4, c02="nvlink3x4", c03="pcie4x16", c12="pcie4x16")
    demands = [spilling(0, optimizer=2), spilling(0, optimizer=2), giving(2), giving(2)]
    first, second, *_ = distribute(demands, ways)
    assert granules(first.pooled.optimizer) == (0, {3: 2}, 0)
    assert granules(second.pooled.optimizer) == (0, {2: 2}, 0)


def test_a_card_that_spills_takes_no_guests():
    first, second = distribute([spilling(0, optimizer=2), spilling(2, optimizer=2)], box(2, c01="nvlink3x4"))
    assert granules(first.pooled.optimizer) == (0, {}, 2)
    assert granules(second.pooled.optimizer) == (2, {}, 0)
    assert second.guests == 0


def test_shares_of_one_gpu_reach_one_another():
    assert Ways(logical_topology("cuda:0", [GIB] * 3)).peers == [[1, 2], [0, 2], [0, 1]]


def test_the_host_is_as_fast_as_the_host_link_says_or_the_catalogue():
    assert Ways(virtual_topology([GIB] * 2, "pcie4x16")).host_bytes_per_s == [link_preset("memory").bytes_per_s] * 2
    assert Ways(logical_topology("cuda:0", [GIB])).host_bytes_per_s == [link_preset("host").bytes_per_s]
    assert box(3, c01="host").host_bytes_per_s == [link_preset(name).bytes_per_s for name in ("host", "host", "memory")]


def test_reading_and_writing_go_over_the_link_to_where_the_bytes_lie():
    ways = box(2, c01="nvlink3x4")
    tiers = Tiers(home=7, peers=(PeerBytes(card=1, nbytes=1000),), host=500)
    expected = 1000 / link_preset("nvlink3x4").bytes_per_s + 500 / link_preset("memory").bytes_per_s
    assert ways.read_s(0, tiers) == ways.write_s(0, tiers) == pytest.approx(expected)


demands = st.one_of(
    st.integers(0, 9).map(giving),
    st.builds(
        spilling,
        st.integers(0, 9),
        weights=st.lists(st.integers(1, 5), max_size=3),
        optimizer=st.integers(0, 9),
        temporaries=st.integers(0, 9),
    ),
)


@settings(max_examples=200)
@given(data=st.data())
def test_every_byte_lies_somewhere_and_the_host_only_has_what_no_reachable_card_has_room_for(boxes, data):
    ways = Ways(data.draw(boxes()))
    wanted = data.draw(st.lists(demands, min_size=len(ways.peers), max_size=len(ways.peers)))
    placed = distribute(wanted, ways)
    for card, (demand, spill) in enumerate(zip(wanted, placed, strict=True)):
        pooled = spill.pooled
        assert pooled.weights.total == demand.weights == sum(tiers.total for _, tiers in spill.layers)
        assert (pooled.optimizer.total, pooled.temporaries.total) == (demand.optimizer, demand.temporaries)
        assert pooled.all.home + spill.guests <= max(spill.limit, 0) <= demand.room
        lying_here = (peer.nbytes for other in placed for peer in other.pooled.all.peers if peer.card == card)
        assert spill.guests == sum(lying_here)
        assert all(peer.card in ways.peers[card] for peer in pooled.all.peers)
        if pooled.all.away:
            assert pooled.all.home == demand.room
        if pooled.all.host:
            free = (placed[peer].limit - placed[peer].guests for peer in ways.peers[card] if not wanted[peer].spills)
            assert not any(free)
