from dataclasses import replace

import pytest

from poolrt.cli.proven import sent_nbytes_of, with_measurement
from poolrt.topology.assemble import assemble
from poolrt.topology.facts import CopyProof, Machine
from poolrt.transfer.measuring.figures import Point, figures_of
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.transfer.measuring.verdict import Proof, judge


def proof(source, target, nbytes=1 << 26, route="P2P", **facts):
    return Proof(route=route, source=source, target=target, nbytes=nbytes, **facts)


def measurement(*proofs, seconds=1e-3):
    """Of two cards, one way from 0 to 1, where a copy of 1 MB took so long."""
    curve = figures_of(
        [Point(nbytes=10**6, seconds=seconds)], route="P2P", source=0, target=1, direction="one way"
    )  # fmt: skip
    verdict = judge(proofs, {"P2P": curve.line}, 0, 1)
    return Measurement(devices=("cuda:0", "cuda:1"), figures=(curve,), proofs=proofs, verdicts=(verdict,))


@pytest.fixture
def swapped(bridged_pair):
    """CUDA counts the two cards the other way round."""
    cards = tuple(replace(card, cuda_index=1 - card.index) for card in bridged_pair.cards)
    return replace(bridged_pair, cards=cards)


def topology_of(machine):
    shown = sorted(machine.cards, key=lambda card: card.cuda_index)
    return assemble(Machine(cards=tuple(shown), pairs=machine.pairs), "cuda", lambda position: f"cuda:{position}")


def test_facts_land_at_the_numbers_of_nvidia_smi(swapped):
    found = with_measurement(swapped, topology_of(swapped), measurement(proof(0, 1, nvlink_nbytes=1 << 26)))
    there, back = found.pair(1, 0), found.pair(0, 1)
    assert there.measured_bytes_per_s == pytest.approx(1e9)
    assert there.proof == CopyProof(nbytes=1 << 26, wrong_nbytes=0, nvlink_nbytes=1 << 26)
    assert (back.measured_bytes_per_s, back.proof) == (None, None)
    assert there.nvlinks == back.nvlinks == 4


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"wrong_nbytes": 1}, CopyProof(nbytes=1 << 20, wrong_nbytes=1)),
        ({"failure": "lost"}, CopyProof(nbytes=1 << 20, wrong_nbytes=0, failure="lost")),
    ],
)
def test_of_several_proofs_the_worst_is_told(swapped, bad, expected):
    proofs = (proof(0, 1), proof(0, 1, 1 << 20, **bad), proof(0, 1, route="HOST"))
    assert with_measurement(swapped, topology_of(swapped), measurement(*proofs)).pair(1, 0).proof == expected


def test_cards_that_the_machine_does_not_show_are_passed_over(bridged_pair):
    """Of cards whose CUDA number nobody saw nothing is said."""
    topology = topology_of(
        replace(bridged_pair, cards=tuple(replace(x, cuda_index=x.index) for x in bridged_pair.cards))
    )
    assert with_measurement(bridged_pair, topology, measurement(proof(0, 1))) == bridged_pair


def test_counters_are_read_by_the_card_s_uuid(swapped, monkeypatch):
    class Counters:
        def sent_nbytes(self, uuid):
            return {"GPU-b": 7}.get(uuid)

    class Block:
        def __enter__(self):
            return Counters()

        def __exit__(self, *error):
            return None

    monkeypatch.setattr("poolrt.cli.proven.nvlink_counters", Block)
    machine = replace(swapped, cards=(swapped.cards[0], replace(swapped.cards[1], uuid="GPU-b")))
    with sent_nbytes_of(machine, topology_of(swapped)) as sent_nbytes:
        assert (sent_nbytes(0), sent_nbytes(1)) == (7, None)
