"""A machine that never was, told as NVML, CUDA and sysfs tell theirs."""

from types import SimpleNamespace

import pytest

UUIDS = tuple(f"GPU-{digit * 8}-0000-0000-0000-000000000000" for digit in "abcd")


class FakeNvmlError(Exception):
    def __init__(self, value):
        super().__init__(value)
        self.value = value


class FakeNvml:
    """nvidia-ml-py as four RTX 3090 would answer it, 0-2 and 1-3 bridged, unless told otherwise.

    `answers` overrides functions by name, with a value or a callable. What is answered nowhere is NOT_SUPPORTED, as
    most questions are on most cards.
    """

    NVMLError = FakeNvmlError
    NVML_ERROR_INVALID_ARGUMENT = 2
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
    NVML_P2P_CAPS_INDEX_READ = (0,)  # as the package has it
    NVML_NVLINK_MAX_LINKS = 36
    NVML_FI_DEV_NVLINK_SPEED_MBPS_L0 = 84
    NVML_FI_DEV_NVLINK_SPEED_MBPS_L1 = 85
    NVML_FI_DEV_NVLINK_SPEED_MBPS_L2 = 86
    NVML_FI_DEV_NVLINK_SPEED_MBPS_L3 = 87
    NVML_FI_DEV_NVLINK_GET_SPEED = 164
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION = 230
    nvmlClocksEventReasonSwPowerCap = 0x4  # noqa: N815
    nvmlClocksEventReasonHwThermalSlowdown = 0x40  # noqa: N815

    def __init__(self, cards=4, bridged=((0, 2), (1, 3)), links=4, **answers):
        self.partner = {a: b for pair in bridged for a, b in (pair, pair[::-1])}
        self.cards, self.links, self.answers = cards, links, answers
        self.opened = 0
        self.fields = {84: 14062, 85: 14062, 86: 14062, 87: 14062}
        self.dead_links = set()

    def nvmlInit(self):  # noqa: N802
        if "Init" in self.answers:
            raise FakeNvmlError(self.answers["Init"])
        self.opened += 1

    def nvmlShutdown(self):  # noqa: N802
        self.opened -= 1

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)
        return lambda *arguments: self.answer(name.removeprefix("nvml"), *arguments)

    def answer(self, function, *arguments):
        assert self.opened == 1
        found = self.answers.get(function, getattr(self, f"_{function}", None))
        if found is None:
            raise FakeNvmlError(3)
        return found(*arguments) if callable(found) else found

    def _DeviceGetCount(self):  # noqa: N802
        return self.cards

    def _DeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def _DeviceGetName(self, handle):  # noqa: N802
        return b"NVIDIA GeForce RTX 3090"

    def _DeviceGetUUID(self, handle):  # noqa: N802
        return UUIDS[handle]

    def _DeviceGetPciInfo(self, handle):  # noqa: N802
        return SimpleNamespace(domain=0, bus=0x10 + handle, device=0)

    def _DeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(total=24576 << 20)

    def _DeviceGetBAR1MemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(bar1Total=256 << 20)

    def _DeviceGetCudaComputeCapability(self, handle):  # noqa: N802
        return (8, 6)

    def _DeviceGetMaxPcieLinkGeneration(self, handle):  # noqa: N802
        return 4

    def _DeviceGetMaxPcieLinkWidth(self, handle):  # noqa: N802
        return 8

    def _DeviceGetNvLinkState(self, handle, link):  # noqa: N802
        if link >= self.links or handle not in self.partner:
            raise FakeNvmlError(2)
        return int((handle, link) not in self.dead_links)

    def _DeviceGetNvLinkRemotePciInfo(self, handle, link):  # noqa: N802
        return SimpleNamespace(domain=0, bus=0x10 + self.partner[handle], device=0)

    def _DeviceGetNvLinkRemoteDeviceType(self, handle, link):  # noqa: N802
        return 0

    def _DeviceGetTopologyCommonAncestor(self, one, other):  # noqa: N802
        return 30 if (one < 2) == (other < 2) else 40

    def _DeviceGetP2PStatus(self, one, other, index):  # noqa: N802
        assert isinstance(index, int)
        return 0 if self.partner.get(one) == other else 2

    def _DeviceGetFieldValues(self, handle, wanted):  # noqa: N802
        return [self._field(number) for number, _ in wanted]

    def _field(self, number):
        known = number in self.fields
        value = SimpleNamespace(uiVal=self.fields.get(number, 0), ullVal=-1)
        return SimpleNamespace(nvmlReturn=0 if known else 3, valueType=1, value=value)

    def _SystemGetDriverVersion(self):  # noqa: N802
        return b"550.54.14"

    def _SystemGetCudaDriverVersion_v2(self):  # noqa: N802
        return 12040


class FakeDriver:
    """CUDA over a list of the cards that it shows, each the number of a card of FakeNvml."""

    def __init__(self, shown=(0, 1, 2, 3), peers=((0, 2), (2, 0), (1, 3), (3, 1)), name="NVIDIA GeForce RTX 3090"):
        self.shown, self.peers, self.name = tuple(shown), set(peers), name

    def driver_version(self):
        return 12040

    def device_count(self):
        return len(self.shown)

    def device_name(self, card):
        return self.name

    def total_memory(self, card):
        return (24000 + self.shown[card]) << 20

    def can_access_peer(self, card, peer):
        return (self.shown[card], self.shown[peer]) in self.peers


class FakeIdentity:
    def __init__(self, shown):
        self.shown = tuple(shown)

    def uuid(self, card):
        return UUIDS[self.shown[card]]

    def bus_id(self, card):
        return f"0000:{0x10 + self.shown[card]:02x}:00.0"

    def attribute(self, card, number):
        return {75: 8, 76: 6, 102: 1}.get(number)


@pytest.fixture
def fake_nvml():
    return FakeNvml


@pytest.fixture
def fake_driver():
    return FakeDriver


@pytest.fixture
def fake_identity():
    return FakeIdentity


@pytest.fixture
def uuids():
    return UUIDS


@pytest.fixture
def system(tmp_path):
    """A folder as the root of a system, and a function that writes files into it."""

    def write(files):
        for path, content in files.items():
            target = tmp_path / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                target.write_text(content)
        return tmp_path

    return write


@pytest.fixture
def device_tree(system):
    """PCI devices at their places: path below /sys/devices -> its files; linked from /sys/bus/pci/devices."""

    def build(devices):
        for path, files in devices.items():
            root = system({f"/sys/devices/{path}/{name}": content for name, content in files.items()})
            (root / "sys/devices" / path).mkdir(parents=True, exist_ok=True)
            folder = root / "sys/bus/pci/devices"
            folder.mkdir(parents=True, exist_ok=True)
            parts = path.split("/")
            for depth in range(2, len(parts) + 1):
                link = folder / parts[depth - 1]
                if not link.is_symlink():
                    link.symlink_to(root / "sys/devices" / "/".join(parts[:depth]))
        return root

    return build
