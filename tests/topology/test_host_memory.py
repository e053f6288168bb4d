"""What the host has to spare: the machine's figure, or the container's where that is less."""

from __future__ import annotations

import pytest

from poolrt.topology.host_memory import available_nbytes

MEMINFO = "MemTotal:       24000000 kB\nMemAvailable:    8000000 kB\n"


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "meminfo").write_text(MEMINFO)
    return tmp_path


def available(folder) -> int:
    return available_nbytes(folder / "meminfo", folder)


def test_the_machine_says(machine):
    assert available(machine) == 8_000_000 * 1024


@pytest.mark.parametrize(("limit", "used", "left"), [("1000", "400", 600), ("1000", "2000", 0), ("max", "400", None)])
def test_a_container_may_have_less(machine, limit, used, left):
    (machine / "memory.max").write_text(f"{limit}\n")
    (machine / "memory.current").write_text(f"{used}\n")
    assert available(machine) == (8_000_000 * 1024 if left is None else left)


def test_a_system_that_does_not_say_has_none(tmp_path):
    assert available(tmp_path) == 0
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    assert available(tmp_path) == 0


def test_this_machine_has_some():
    assert available_nbytes() > 0
