import json

import pytest

from poolrt.cli.main import main
from poolrt.topology.discover import Sources
from poolrt.topology.facts import CardFacts, DriverFacts, Machine, NvlinkPort, PairFacts

PASTED = """\
$ nvidia-smi topo -m
\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID
GPU0\t X \tNV4\t0-23\t0\t\tN/A
GPU1\tNV4\t X \t0-23\t0\t\tN/A
what is this line?
$ nvidia-smi nvlink -s
GPU 0: NVIDIA GeForce RTX 3090 (UUID: GPU-aa)
\t Link 0: 14.062 GB/s
\t Link 1: <inactive>
\t Link 2: 14.062 GB/s
\t Link 3: 14.062 GB/s
GPU 1: NVIDIA GeForce RTX 3090 (UUID: GPU-bb)
\t Link 0: 14.062 GB/s
\t Link 1: 14.062 GB/s
\t Link 2: 14.062 GB/s
\t Link 3: 14.062 GB/s
"""


class NvmlOf:
    """An NvmlSource that answers one machine."""

    def __init__(self, machine):
        self.machine = machine

    def read(self):
        return self.machine


class DriverOf:
    """CUDA on the cards of a machine, all of which reach each other."""

    def __init__(self, machine):
        self.cards = machine.cards

    def driver_version(self):
        return 12040

    def device_count(self):
        return len(self.cards)

    def device_name(self, card):
        return self.cards[card].name

    def total_memory(self, card):
        return self.cards[card].memory_bytes

    def can_access_peer(self, card, peer):
        return True


@pytest.fixture
def pasted(tmp_path):
    path = tmp_path / "pasted.txt"
    path.write_text(PASTED)
    return str(path)


@pytest.fixture
def run(capsys):
    """Runs a command line; answers its exit code, what it printed and what it complained about."""

    def call(*words):
        try:
            code = main(list(words))
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def run_json(run):
    def call(*words):
        code, out, _ = run(*words, "--json")
        return code, json.loads(out)

    return call


@pytest.fixture
def bridged_pair():
    """Two bridged RTX A6000 in full health, as far as it is told."""
    cards = tuple(
        CardFacts(
            index=index,
            name="NVIDIA RTX A6000",
            memory_bytes=48 << 30,
            bus_id=f"0000:0{index}:00.0",
            nvlinks=tuple(NvlinkPort(index=at, active=True, signal_bytes_per_s=14.0625e9) for at in range(4)),
        )
        for index in range(2)
    )
    pairs = tuple(PairFacts(source=a, target=1 - a, relation="NV4", nvlinks=4) for a in range(2))
    return Machine(cards=cards, pairs=pairs, driver=DriverFacts(loaded=True, version="550.54.14"))


@pytest.fixture
def this_machine(monkeypatch):
    """Makes discovery see a given machine, or none."""

    def be(machine):
        sources = (
            Sources(driver=DriverOf(machine), nvml=NvmlOf(machine)) if machine else Sources(driver_error="NOT_FOUND")
        )
        monkeypatch.setattr(Sources, "of_this_machine", classmethod(lambda cls, watch_s=0.0: sources))
        monkeypatch.delenv("POOLRT_CARDS", raising=False)

    return be
