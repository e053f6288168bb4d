import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.transfer.measuring.figures import Point, figures_of
from poolrt.transfer.measuring.measurement import Measurement
from poolrt.transfer.measuring.verdict import PairVerdict, Proof

kinds = st.sampled_from(["LOCAL", "P2P", "HOST"])
cards = st.integers(0, 7)
directions = st.sampled_from(["one way", "both ways"])
points = st.lists(
    st.builds(Point, nbytes=st.integers(8, 1 << 30), seconds=st.floats(1e-7, 10)),
    min_size=1,
    max_size=9,
    unique_by=lambda point: point.nbytes,
)
measurements = st.builds(
    Measurement,
    devices=st.lists(st.sampled_from(["cuda:0", "cuda:1", "vcard:0"])).map(tuple),
    figures=st.lists(
        st.builds(
            figures_of, points, route=kinds, source=cards, target=cards, direction=directions
        ),
        max_size=3,
    ).map(tuple),
    proofs=st.lists(
        st.builds(
            Proof,
            route=kinds,
            source=cards,
            target=cards,
            nbytes=st.integers(8, 1 << 26),
            wrong_nbytes=st.integers(0, 9),
            first_wrong=st.none() | st.integers(0, 9),
            failure=st.none() | st.text(),
            nvlink_nbytes=st.none() | st.integers(0, 1 << 40),
        ),
        max_size=3,
    ).map(tuple),
    verdicts=st.lists(
        st.builds(
            PairVerdict,
            source=cards,
            target=cards,
            finding=st.sampled_from(["usable", "lies", "fails", "slower"]),
            sentence=st.text(),
            choice=st.lists(st.tuples(st.integers(0, 1 << 30), kinds), min_size=1, max_size=3).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
)  # fmt: skip


@settings(max_examples=50)
@given(measurements)
def test_json_gives_back_what_it_was_given(measurement):
    assert Measurement.from_json(measurement.to_json()) == measurement


def small():
    def curve(route, seconds):
        return figures_of([Point(nbytes=1000, seconds=seconds)], route=route, source=0, target=1, direction="one way")

    return Measurement(
        devices=("vcard:0", "vcard:1"),
        figures=(curve("P2P", 1e-6), curve("HOST", 4e-6)),
        verdicts=(
            PairVerdict(source=0, target=1, finding="lies", sentence="it lies", choice=((0, "HOST"),)),
            PairVerdict(source=1, target=0, finding="usable", sentence="good", choice=((0, "P2P"),)),
        ),
    )


def test_the_json_form_keeps_the_contract():
    body = json.loads(small().to_json())
    assert body["schema"] == 1
    assert set(body) == {"schema", "devices", "figures", "proofs", "verdicts"}
    assert {"route", "source", "target", "direction", "points", "line", "half_bandwidth_nbytes"} <= set(
        body["figures"][0]
    )
    assert body["verdicts"][0]["choice"] == [{"from_nbytes": 0, "route": "HOST"}]


def test_the_bandwidth_of_a_pair_is_that_of_the_route_it_takes():
    measurement = small()
    assert measurement.bytes_per_s(0, 1) == pytest.approx(1000 / 4e-6)  # P2P is faster and lies
    assert measurement.bytes_per_s(1, 0) is None
    assert measurement.bytes_per_s(0, 5) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{",
        '{"schema": 2}',
        '{"schema": 1}',
        '{"schema": 1, "devices": [], "figures": [1], "proofs": []}',
    ],
)
def test_text_that_is_no_measurement_is_refused(text):
    with pytest.raises(ConfigurationError):
        Measurement.from_json(text)
