import re

import pytest

from poolrt.topology.catalog import link_preset, wire_of_signal
from poolrt.topology.known_cards import KNOWN_CARDS, known_card

GB = 1e9


@pytest.mark.parametrize(
    ("name", "wire", "links"),
    [
        ("Tesla P100-SXM2-16GB", "nvlink1", 4),
        ("Tesla V100-SXM2-32GB", "nvlink2", 6),
        ("Tesla V100-PCIE-16GB", None, 0),
        ("NVIDIA GeForce RTX 2080 Ti", "nvlink2", 2),
        ("NVIDIA GeForce RTX 2080", "nvlink2", 1),
        ("TITAN RTX", "nvlink2", 2),
        ("NVIDIA A100-SXM4-80GB", "nvlink3sxm", 12),
        ("NVIDIA A100 80GB PCIe", "nvlink3sxm", 12),
        ("NVIDIA A30", "nvlink3sxm", 4),
        ("NVIDIA GeForce RTX 3090", "nvlink3rtx", 4),
        ("NVIDIA GeForce RTX 3090 Ti", "nvlink3rtx", 4),
        ("NVIDIA RTX A6000", "nvlink3rtx", 4),
        ("NVIDIA A40", "nvlink3rtx", 4),
        ("NVIDIA H100 PCIe", "nvlink4", 12),
        ("NVIDIA H100 NVL", "nvlink4", 12),
        ("NVIDIA H100 80GB HBM3", "nvlink4", 18),
        ("NVIDIA H200", "nvlink4", 18),
        ("NVIDIA H800", "nvlink4", 8),
        ("NVIDIA GH200 480GB", "nvlink4", 18),
        ("NVIDIA B200", "nvlink5", 18),
        ("NVIDIA GB200", "nvlink5", 18),
        # No RTX 40 or 50 card has NVLink, whatever advertisements and forums say.
        ("NVIDIA GeForce RTX 4090", None, 0),
        ("NVIDIA GeForce RTX 5090", None, 0),
        ("NVIDIA GeForce RTX 3060", None, 0),
        ("NVIDIA GeForce RTX 3080 Ti", None, 0),
        ("NVIDIA RTX 6000 Ada Generation", None, 0),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", None, 0),
        ("NVIDIA L40S", None, 0),
        ("NVIDIA L4", None, 0),
        ("Tesla T4", None, 0),
        ("NVIDIA A10", None, 0),
    ],
)
def test_cards_are_known_by_the_driver_s_name(name, wire, links):
    card = known_card(name)
    assert (card.nvlink, card.healthy_links) == (wire, links)


@pytest.mark.parametrize("name", [None, "", "NVIDIA GeForce GTX 1080", "virtual card 0", "GPU 0"])
def test_other_cards_are_not_known(name):
    assert known_card(name) is None


@pytest.mark.parametrize("card", KNOWN_CARDS, ids=lambda card: card.pattern)
def test_an_entry_agrees_with_the_catalogue_of_links(card):
    assert card.source
    re.compile(card.pattern)
    link_preset(f"pcie{card.pcie_generation}x16")
    assert (card.nvlink is None) == (card.healthy_links == 0)
    if card.nvlink:
        assert link_preset(f"{card.nvlink}x{card.healthy_links}").kind == "NVLINK"


@pytest.mark.parametrize("card", KNOWN_CARDS, ids=lambda card: card.pattern)
def test_popular_figures_that_are_wrong_are_not_in_it(card):
    """600 GB/s is an A100's twelve links in both directions, not a link; 32 GB/s are sixteen PCIe lanes, not one."""
    lane = link_preset(f"pcie{card.pcie_generation}x1").nominal_bytes_per_s
    assert lane < 4 * GB
    if card.nvlink:
        assert link_preset(f"{card.nvlink}x1").nominal_bytes_per_s <= 50 * GB
        whole = link_preset(f"{card.nvlink}x{card.healthy_links}").nominal_bytes_per_s
        assert whole <= 900 * GB
    if "A100" in card.pattern:
        assert whole == 300 * GB


@pytest.mark.parametrize(
    ("rate", "wire"),
    [(20.0, "nvlink1"), (25.781, "nvlink2"), (14.062, "nvlink3rtx"), (25.0, "nvlink3sxm"), (26.562, "nvlink4"),
     (53.125, "nvlink5"), (50.0, "nvlink5"), (3.0, None)],
)  # fmt: skip
def test_a_link_is_known_by_the_rate_that_nvidia_smi_prints(rate, wire):
    assert wire_of_signal(rate * GB) == wire
