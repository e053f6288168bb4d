"""libcuda's functions by name, with a library that notes what it was given."""

import ctypes

import pytest

from poolrt.topology.sources.cuda import LibraryIdentity, read_cuda


class FakeLibrary:
    """Two devices with handles 70 and 71, as a driver may number them."""

    def cuDeviceGet(self, device, ordinal):  # noqa: N802
        if ordinal.value > 1:
            return 101
        device._obj.value = 70 + ordinal.value
        return 0

    def cuDeviceGetUuid_v2(self, uuid, device):  # noqa: N802
        ctypes.memmove(uuid, bytes([device.value]) + bytes(range(1, 16)), 16)
        return 0

    def cuDeviceGetPCIBusId(self, text, capacity, device):  # noqa: N802
        assert capacity.value >= 13
        text.value = b"0000:C2:00.0"
        return 0

    def cuDeviceGetAttribute(self, value, number, device):  # noqa: N802
        if number.value == 999:
            return 1
        value._obj.value = number.value + device.value
        return 0


def test_a_uuid_is_written_as_nvml_writes_it():
    assert LibraryIdentity(FakeLibrary()).uuid(0) == "GPU-46010203-0405-0607-0809-0a0b0c0d0e0f"


def test_an_address_is_written_as_sysfs_writes_it():
    assert LibraryIdentity(FakeLibrary()).bus_id(1) == "0000:c2:00.0"


def test_attributes_are_asked_of_the_device_behind_the_number():
    identity = LibraryIdentity(FakeLibrary())
    assert identity.attribute(1, 102) == 102 + 71
    assert identity.attribute(1, 999) is None


def test_what_an_old_driver_lacks_is_none():
    class Old:
        cuDeviceGet = FakeLibrary().cuDeviceGet  # noqa: N815

    identity = LibraryIdentity(Old())
    assert (identity.uuid(0), identity.bus_id(0), identity.attribute(0, 75)) == (None, None, None)


def test_without_the_library_there_is_no_identity(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert LibraryIdentity.open() is None


@pytest.mark.parametrize("known", [True, False])
def test_a_driver_is_read_with_and_without_identities(fake_driver, fake_identity, known, uuids):
    reading = read_cuda(fake_driver(shown=(2, 0)), fake_identity((2, 0)) if known else None)
    assert [card.uuid for card in reading.cards] == ([uuids[2], uuids[0]] if known else [None, None])
    assert reading.cards[0].compute_capability == ((8, 6) if known else None)
    assert reading.peers == {(0, 1): True, (1, 0): True}
    assert reading.version == (12, 4)
