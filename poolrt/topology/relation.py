"""How two PCI devices are related, in the words of `nvidia-smi topo -m`. Pure: decided from their paths in sysfs.

common part of the two paths                           relation
a bridge of a switch, one switch between the two       PIX
a bridge of a switch, more switches between            PXB
only the root complex                                  PHB
nothing, but the same NUMA node                        NODE
nothing, and different NUMA nodes                      SYS
"""

from __future__ import annotations

from collections.abc import Sequence

# Between the shared upstream bridge and a card behind one switch there is exactly the switch's downstream bridge.
_BRIDGES_OF_ONE_SWITCH = 1


def pcie_relation(first: Sequence[str], second: Sequence[str], same_numa_node: bool) -> str:
    """The relation of two devices.

    Args:
        first: parts of a device's path from its host bridge ("pci0000:40") to itself.
        second: likewise of the other.
        same_numa_node: whether both are on one NUMA node.
    """
    shared = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        shared += 1
    if shared == 0:
        return "NODE" if same_numa_node else "SYS"
    if shared == 1:  # the host bridge only: different root ports of one root complex
        return "PHB"
    between = max(len(first), len(second)) - shared - 1
    return "PIX" if between <= _BRIDGES_OF_ONE_SWITCH else "PXB"
