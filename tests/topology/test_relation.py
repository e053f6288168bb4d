import pytest

from poolrt.topology.relation import pcie_relation

#   pci0000:40 - 40:01.1 - 41:00.0 -+- 42:00.0 - 43:00.0     card A
#                                   +- 42:01.0 - 44:00.0     card B, behind the same switch
#                                   +- 42:02.0 - 45:00.0 - 46:00.0 - 47:00.0     card C, one switch further down
#              - 40:03.1 - 48:00.0                           card D, under another root port
#   pci0000:60 - 60:01.1 - 61:00.0                           card E, another root complex
A = ("pci0000:40", "0000:40:01.1", "0000:41:00.0", "0000:42:00.0", "0000:43:00.0")
B = ("pci0000:40", "0000:40:01.1", "0000:41:00.0", "0000:42:01.0", "0000:44:00.0")
C = ("pci0000:40", "0000:40:01.1", "0000:41:00.0", "0000:42:02.0", "0000:45:00.0", "0000:46:00.0", "0000:47:00.0")
D = ("pci0000:40", "0000:40:03.1", "0000:48:00.0")
E = ("pci0000:60", "0000:60:01.1", "0000:61:00.0")


@pytest.mark.parametrize(
    ("first", "second", "same_node", "relation"),
    [
        (A, B, True, "PIX"),
        (A, C, True, "PXB"),
        (A, D, True, "PHB"),
        (C, D, False, "PHB"),
        (A, E, True, "NODE"),
        (A, E, False, "SYS"),
    ],
)
def test_the_relation_is_where_the_paths_part(first, second, same_node, relation):
    assert pcie_relation(first, second, same_node) == relation
    assert pcie_relation(second, first, same_node) == relation
