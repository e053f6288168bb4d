import pytest

from poolrt.errors import ConfigurationError
from poolrt.transfer.measuring.effort import FULL, PROOF, QUICK, limited
from poolrt.units import KIB, MIB


@pytest.mark.parametrize("effort", [FULL, QUICK, PROOF])
def test_every_effort_proves_64_mib_where_there_is_room(effort):
    assert limited(effort, 64 * MIB) == effort
    assert max(effort.probe_sizes) == 64 * MIB


def test_probes_are_cut_to_the_room_and_timed_copies_left_out():
    """A card that is nearly full is proven with the largest copy that it has room for."""
    small = limited(FULL, 5 * MIB + 13)
    assert small.probe_sizes == (1 * MIB, 4 * MIB, 5 * MIB + 8)
    assert small.host_probe_sizes == FULL.host_probe_sizes
    assert small.sizes == tuple(nbytes for nbytes in FULL.sizes if nbytes <= 4 * MIB)
    assert limited(FULL, 1 * KIB).probe_sizes == (1 * KIB,)


def test_a_card_without_room_is_refused_with_what_it_has():
    with pytest.raises(ConfigurationError, match=r"7\.992 KiB free"):
        limited(FULL, 1023)
