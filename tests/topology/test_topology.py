import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.topology.topology import Card, Link, Topology


def card(index, **changes):
    facts = {
        "index": index,
        "name": f"card {index}",
        "kind": "cuda",
        "memory_bytes": 1 << 30,
        "device": f"cuda:{index}",
    }
    return Card(**{**facts, **changes})


def link(source, target, **changes):
    facts = {"kind": "PCIE", "relation": "PHB", "bytes_per_s": 25e9, "latency_s": 7e-6}
    return Link(source=source, target=target, **{**facts, **changes})


@pytest.fixture
def pair():
    return Topology(cards=(card(0), card(1)), links=(link(0, 1), link(1, 0, bytes_per_s=20e9)))


def test_a_link_belongs_to_a_direction(pair):
    assert pair.link(0, 1).bytes_per_s == 25e9
    assert pair.link(1, 0).bytes_per_s == 20e9
    assert Topology(cards=pair.cards).link(0, 1) is None


@pytest.mark.parametrize(
    ("cards", "links"),
    [
        ((1, 0), ()),
        ((0, 2), ()),
        ((0, 0), ()),
        ((0, 1), ((0, 2),)),
        ((0, 1), ((0, 1), (0, 1))),
    ],
    ids=["out of order", "gap", "twice", "link to nowhere", "link twice"],
)
def test_what_contradicts_itself_is_refused(cards, links):
    with pytest.raises(ConfigurationError):
        Topology(cards=tuple(card(index) for index in cards), links=tuple(link(*pair) for pair in links))


@pytest.mark.parametrize(
    "wrong",
    [{"target": 0}, {"kind": "WIRE"}, {"bytes_per_s": 0.0}, {"bytes_per_s": float("inf")}, {"latency_s": -1e-6}],
    ids=str,
)
def test_a_link_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigurationError):
        link(0, **{"target": 1, **wrong})


@pytest.mark.parametrize("wrong", [{"memory_bytes": 0}, {"index": -1}, {"kind": "tpu"}], ids=str)
def test_a_card_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigurationError):
        card(**{"index": 0, **wrong})


def test_the_json_form_keeps_the_keys_of_the_contract(pair):
    body = json.loads(pair.to_json())
    assert body["schema"] == 1
    assert {"index", "name", "kind", "memory_bytes"} <= set(body["cards"][0])
    assert {"source", "target", "kind", "relation", "bytes_per_s", "latency_s"} == set(body["links"][0])


cards_strategy = st.lists(
    st.builds(
        lambda nbytes, kind, name: (nbytes, kind, name),
        st.integers(1, 1 << 40),
        st.sampled_from(["cuda", "logical", "virtual", "recorded"]),
        st.text(max_size=10),
    ),
    max_size=5,
)


@given(cards_strategy, st.data())
def test_json_brings_back_the_same_topology(facts, data):
    cards = tuple(
        card(index, memory_bytes=nbytes, kind=kind, name=name) for index, (nbytes, kind, name) in enumerate(facts)
    )
    pairs = [(x.index, y.index) for x in cards for y in cards if x != y]
    chosen = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    topology = Topology(cards=cards, links=tuple(link(*pair) for pair in chosen))
    assert Topology.from_json(topology.to_json()) == topology


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "cards": [{}], "links": []}'])
def test_other_text_is_refused(text):
    with pytest.raises(ConfigurationError):
        Topology.from_json(text)


def test_a_file_may_leave_devices_out_but_not_of_logical_cards(pair):
    def without_devices(kind):
        body = pair.to_dict() | {"links": []}
        body["cards"] = [{**plain, "kind": kind} for plain in body["cards"]]
        for plain in body["cards"]:
            del plain["device"]
        return json.dumps(body)

    assert [x.device for x in Topology.from_json(without_devices("cuda")).cards] == ["cuda:0", "cuda:1"]
    assert [x.device for x in Topology.from_json(without_devices("recorded")).cards] == ["vcard:0", "vcard:1"]
    with pytest.raises(ConfigurationError, match="device"):
        Topology.from_json(without_devices("logical"))


def test_the_fingerprint_follows_what_planning_reads(pair):
    def changed(**changes):
        return Topology(cards=(card(0, **changes), pair.cards[1]), links=pair.links).fingerprint()

    assert changed() == pair.fingerprint()
    assert changed(name="another") == pair.fingerprint()
    assert changed(memory_bytes=1 << 29) != pair.fingerprint()
    assert changed(device="cuda:1") != pair.fingerprint()
    assert Topology(cards=pair.cards).fingerprint() != pair.fingerprint()
    assert Topology(cards=pair.cards, links=pair.links[::-1]).fingerprint() == pair.fingerprint()


def test_a_subset_is_numbered_anew_and_keeps_its_links():
    whole = Topology(cards=tuple(card(i) for i in range(3)), links=(link(0, 2, bytes_per_s=1.0), link(0, 1)))
    part = whole.subset((2, 0))
    assert [x.device for x in part.cards] == ["cuda:2", "cuda:0"]
    assert [(x.source, x.target, x.bytes_per_s) for x in part.links] == [(1, 0, 1.0)]
    for wrong in ((0, 0), (3,), (-1,)):
        with pytest.raises(ConfigurationError):
            whole.subset(wrong)


def test_it_prints_a_line_for_each_card_and_link(pair):
    lines = str(pair).splitlines()
    assert len(lines) == 4
    assert "cuda:1" in lines[1]
    assert "20.0 GB/s" in lines[3]
    assert str(Topology(cards=())) == "no cards"
