import pytest

from poolrt.errors import ConfigurationError
from poolrt.topology.catalog import EXAMPLES, link_preset

GB = 1e9


@pytest.mark.parametrize(
    ("name", "nominal"),
    [
        ("nvlink1x2", 40 * GB),
        ("nvlink2x2", 50 * GB),
        ("nvlink3x4", 56.25 * GB),  # RTX 3090, A6000: 14.0625 GB/s per link
        ("nvlink3sxmx4", 100 * GB),  # A100 board without a switch: 25 GB/s per link
        ("nvlink3x12", 300 * GB),  # A100: half of the "600 GB/s" that count both directions
        ("nvlink4x18", 450 * GB),
        ("nvlink4x6", 150 * GB),
        ("nvlink5x18", 900 * GB),
        ("pcie3x16", 15.75 * GB),
        ("pcie4x16", 31.51 * GB),
        ("pcie4x8", 15.75 * GB),
        ("pcie5x16", 63.02 * GB),
    ],
)
def test_nominal_bandwidth_counts_one_direction(name, nominal):
    assert link_preset(name).nominal_bytes_per_s == pytest.approx(nominal, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("nvlink3x4", 50.9, 52.2),
        ("nvlink3x12", 265, 276),
        ("nvlink4x18", 371, 396),
        ("pcie4x16", 25, 26.5),
        ("pcie5x16", 53, 56.6),
        ("host", 10.6, 22),
    ],
)
def test_what_planning_uses_lies_within_what_was_measured(name, low, high):
    assert low * GB <= link_preset(name).bytes_per_s <= high * GB


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_a_link_with_a_source(name):
    preset = link_preset(name)
    assert preset.source
    assert 0 < preset.reachable <= 1
    link = preset.link(3, 5)
    assert (link.source, link.target, link.kind) == (3, 5, preset.kind)
    assert link.bytes_per_s == preset.bytes_per_s


def test_links_are_named_as_the_driver_prints_them():
    assert (link_preset("nvlink3x4").relation, link_preset("NVLink4x18").relation) == ("NV4", "NV18")
    assert link_preset("nvlink3x4").kind == "NVLINK"
    assert link_preset("pcie4x16").kind == "PCIE"
    assert link_preset("host").kind == "HOST"


@pytest.mark.parametrize(
    "name",
    ["", "nvlink", "nvlink3", "nvlink3x0", "nvlink3x13", "nvlink9x4", "pcie7x16", "pcie4x3", "wifi", "nvlink4sxmx4"],
)
def test_links_that_do_not_exist_are_refused(name):
    with pytest.raises(ConfigurationError):
        link_preset(name)
