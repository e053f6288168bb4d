import pytest

from poolrt.errors import ConfigurationError
from poolrt.topology.visible import names_mig_slice, refuse_mig, visible_cards

UUIDS = ("GPU-aa11", "GPU-aa22", "GPU-bb33", "GPU-cc44")


@pytest.mark.parametrize(
    ("value", "positions"),
    [
        (None, (0, 1, 2, 3)),
        ("", ()),
        ("-1", ()),
        ("0", (0,)),
        ("3,1", (3, 1)),
        (" 2 , 0 ", (2, 0)),
        ("0,7,1", (0,)),
        ("0,-1,1", (0,)),
        ("0,x", (0,)),
        ("1,1", ()),
        ("GPU-cc44,GPU-aa11", (3, 0)),
        ("GPU-b", (2,)),
        ("gpu-BB", (2,)),
        ("GPU-aa", ()),  # two cards begin so
        ("GPU-dd", ()),
        ("2,GPU-aa22", (2, 1)),
        ("MIG-1234", ()),
    ],
)
def test_the_cards_that_are_left(value, positions):
    assert visible_cards(value, UUIDS) == positions


@pytest.mark.parametrize("value", ["MIG-1234", "0,MIG-GPU-aa11/1/0", " mig-12"])
def test_mig_slices_are_refused_with_what_to_do(value):
    assert names_mig_slice(value)
    with pytest.raises(ConfigurationError, match="logical"):
        refuse_mig(value)


@pytest.mark.parametrize("value", [None, "", "0,1", "GPU-aa11"])
def test_whole_cards_are_not_refused(value):
    refuse_mig(value)
    assert not names_mig_slice(value)
