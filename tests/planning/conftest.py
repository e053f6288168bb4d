"""Profiles: one made by hand, and a strategy that makes any."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import strategies as st

from poolrt.planning.memory import MemoryModel
from poolrt.planning.profile import CallFacts, LayerFacts, Profile, TiedParameter
from poolrt.planning.split_facts import CardWeights, RegionCall, SplitFacts
from poolrt.topology.build import virtual_topology
from poolrt.topology.catalog import link_preset
from poolrt.topology.topology import Topology

MIB = 1 << 20
UNIT = 60
MAGNIFIED = 2 * MIB // UNIT
"""all random sizes are multiples of it, and all random batches divide it: then micro-batches hold whole bytes"""


def _layer(name, weight, **changes):
    facts = {"name": name, "weight_nbytes": weight, "trainable_nbytes": weight, "largest_gradient_nbytes": weight // 2}
    return LayerFacts(**{**facts, **changes})


def _call(layer, **changes):
    facts = {
        "layer": layer,
        "forward_s": 0.01,
        "backward_s": 0.02,
        "saved_nbytes": 8 * MIB,
        "forward_workspace_nbytes": 2 * MIB,
        "backward_workspace_nbytes": 3 * MIB,
        "output_nbytes": MIB,
    }
    return CallFacts(**{**facts, **changes})


@pytest.fixture(scope="session")
def make_chain():
    """A model of `blocks` equal blocks of 16 MiB, called one after another."""

    def make(blocks=8, batch_size=8, weight=16 * MIB, **call_changes):
        names = [f"block.{index}" for index in range(blocks)]
        return Profile(
            model="chain",
            batch_size=batch_size,
            layers=tuple(_layer(name, weight, trained_tensors=(weight // 2,) * 2) for name in names),
            calls=tuple(_call(name, **call_changes) for name in names),
        )

    return make


def _sizes(most):
    return st.integers(0, most).map(lambda count: count * UNIT)


@st.composite
def _profiles(draw, most_layers=6, revisits=True, ties=True):
    names = [f"layer{index}" for index in range(draw(st.integers(1, most_layers)))]
    # A layer is called first in the order of the profile; later calls go anywhere behind it.
    called = list(names)
    for name in draw(st.lists(st.sampled_from(names), max_size=3)) if revisits else []:
        called.insert(draw(st.integers(called.index(name) + 1, len(called))), name)
    firsts = list(dict.fromkeys(called))
    tied = tuple(draw(st.lists(_tied(names), max_size=2))) if ties and len(names) > 1 else ()
    return Profile(
        model="random",
        batch_size=draw(st.sampled_from([1, 2, 3, 4, 5, 6])),
        layers=tuple(draw(_layers(name, tied)) for name in firsts),
        calls=tuple(draw(_calls(name)) for name in called),
        tied=tied,
        input_nbytes=draw(_sizes(3)),
        gathered_nbytes=draw(_sizes(5)),
        output_nbytes=draw(_sizes(5)),
        returns_loss=draw(st.booleans()),
    )


@st.composite
def _tied(draw, names):
    users = draw(st.lists(st.sampled_from(names), min_size=2, max_size=3, unique=True))
    return TiedParameter(name="tied", nbytes=draw(_sizes(5)), layers=tuple(sorted(users, key=names.index)))


@st.composite
def _layers(draw, name, tied):
    homed = sum(x.nbytes for x in tied if x.layers[0] == name)
    own, frozen = draw(_sizes(8)), draw(_sizes(4))
    return _layer(
        name,
        homed + own + frozen,
        trainable_nbytes=homed + own,
        largest_gradient_nbytes=draw(st.integers(0, own // UNIT)) * UNIT,
    )


@st.composite
def _calls(draw, name):
    glue_saved, saved = sorted([draw(_sizes(8)), draw(_sizes(8))])
    return _call(
        name,
        forward_s=draw(st.integers(0, 8)) / 64,
        backward_s=draw(st.integers(0, 8)) / 64,
        saved_nbytes=saved,
        glue_saved_nbytes=glue_saved,
        glue_workspace_nbytes=draw(_sizes(8)),
        forward_workspace_nbytes=draw(_sizes(8)),
        backward_workspace_nbytes=draw(_sizes(8)),
        output_nbytes=draw(_sizes(4)),
    )


@pytest.fixture(scope="session")
def profiles():
    """A function that gives a strategy of profiles."""
    return _profiles


def _magnify(facts):
    sizes = {name: value * MAGNIFIED for name, value in vars(facts).items() if name.endswith("nbytes")}
    return replace(facts, **sizes)


@st.composite
def _large_profiles(draw, **options):
    profile = draw(_profiles(**options))
    parts = {kind: tuple(map(_magnify, getattr(profile, kind))) for kind in ("layers", "calls", "tied")}
    return replace(_magnify(profile), **parts)


@pytest.fixture(scope="session")
def large_profiles():
    """A function that gives a strategy of profiles whose sizes are those of `profiles` times some 35,000."""
    return _large_profiles


_LINKS = ("nvlink3x4", "pcie4x16", "host", None)


@st.composite
def _boxes(draw, most_cards=4, smallest=MIB, largest=300 * MIB):
    memory = draw(st.lists(st.integers(smallest, largest), min_size=1, max_size=most_cards))
    kinds = {pair: draw(st.sampled_from(_LINKS)) for pair in combinations(range(len(memory)), 2)}
    links = (link_preset(name).link(*ends) for pair, name in kinds.items() if name for ends in (pair, pair[::-1]))
    return Topology(cards=virtual_topology(memory).cards, links=tuple(links))


@pytest.fixture(scope="session")
def boxes():
    """A function that gives a strategy of topologies: cards of all sizes, any pair joined by any link or none."""
    return _boxes


@st.composite
def _tight(draw):
    profile = draw(_large_profiles(most_layers=4))
    whole = MemoryModel(profile, micro_batches=1, optimizer="adamw").peak(range(len(profile.layers)), gathers=True)
    largest = max(MIB, whole.total)
    return profile, draw(_boxes(most_cards=3, smallest=largest // draw(st.integers(2, 6)), largest=largest))


@pytest.fixture(scope="session")
def tight():
    """A function that gives a strategy of large profiles and topologies whose cards hold a good part of them each."""
    return _tight


def _split(profile: Profile, shares: tuple[float, ...], part: float = 0.5) -> SplitFacts:
    """Facts of a model of which `part` of every layer, and of what it saves and computes, is split."""

    def weight(layer: LayerFacts, card: int) -> LayerFacts:
        own = part * shares[card] + (0.0 if card else 1 - part)
        sizes = ("weight_nbytes", "trainable_nbytes", "largest_gradient_nbytes")
        return replace(
            layer,
            trained_tensors=tuple(int(nbytes * own) for nbytes in layer.trained_tensors),
            frozen_tensors=tuple(int(nbytes * own) for nbytes in layer.frozen_tensors),
            **{name: int(getattr(layer, name) * own) for name in sizes},
        )

    return SplitFacts(
        profile=profile,
        calls=tuple(
            RegionCall(
                module=f"{call.layer}.region",
                call=index,
                shares=shares,
                forward_s=part * call.forward_s,
                copied_nbytes=call.output_nbytes,
                saved_nbytes=int(part * (call.saved_nbytes - call.glue_saved_nbytes)),
                output_nbytes=call.output_nbytes,
            )
            for index, call in enumerate(profile.calls)
        ),
        weights=tuple(
            CardWeights(layers=tuple(weight(layer, card) for layer in profile.layers), tied=profile.tied)
            for card in range(len(shares))
        ),
        modules=tuple(f"{layer.name}.region" for layer in profile.layers),
        rest=tuple(layer.name for layer in profile.layers),
    )


@pytest.fixture(scope="session")
def split():
    """A function that gives facts of a model of which a part of every layer is split."""
    return _split
