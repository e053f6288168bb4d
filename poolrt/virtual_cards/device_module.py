"""The module `torch.vcard`: for virtual cards what `torch.cuda` is for GPUs, under the same names.

torch itself calls several of these (manual_seed_all, get_rng_state, device, ...), so the names are torch's.
Sizes are in bytes. A `device` is an ordinal, "vcard:1", a torch.device, or None for the current card.
"""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import NamedTuple

import torch

import poolrt._C as _C  # not `from poolrt`: that would close a circle of imports

DeviceLike = int | str | torch.device | None

Stream = torch.Stream
Event = torch.Event

default_generators: tuple[torch.Generator, ...] = ()
"""One per card."""

_initialized = True
"""torch.utils.checkpoint keeps the cards' random states only where it finds this."""

_PRIVATE_DEVICE_TYPE = torch._C._autograd.DeviceType.PrivateUse1.value

_library: ctypes.PyDLL | None = None
_driver = _C.host_driver()


class DeviceProperties(NamedTuple):
    """What `get_device_properties` tells of a card."""

    name: str
    total_memory: int
    major: int = 0
    minor: int = 0
    multi_processor_count: int = 1


def attach(library: ctypes.CDLL) -> None:
    """Use the loaded backend `library`; for `poolrt.virtual_cards.backend` alone."""
    global _library
    _library = ctypes.PyDLL(library._name)  # the calls below are too short to let go of the interpreter lock


def adopt_configuration() -> None:
    """Follow a change of the number of cards; for `poolrt.virtual_cards.backend` alone."""
    global default_generators
    default_generators = tuple(torch.ops.vcard.default_generator(card) for card in range(device_count()))
    if current_device() >= device_count():
        set_device(0)


# ---- cards


def is_available() -> bool:
    """Whether there are virtual cards."""
    return _library is not None


def is_initialized() -> bool:
    """Always, once the backend is loaded."""
    return _library is not None


def device_count() -> int:
    """How many virtual cards there are."""
    return _driver.device_count()


def current_device() -> int:
    """The ordinal of this thread's current card."""
    return int(_loaded_library().vcard_current_card())


def set_device(device: DeviceLike) -> None:
    """Make `device` this thread's current card."""
    _loaded_library().vcard_set_current_card(_ordinal(device))


def get_device_name(device: DeviceLike = None) -> str:
    """What kind of card it is."""
    return _driver.device_name(_ordinal(device))


def get_device_properties(device: DeviceLike = None) -> DeviceProperties:
    """Name and memory of a card."""
    card = _ordinal(device)
    return DeviceProperties(name=_driver.device_name(card), total_memory=_driver.total_memory(card))


def set_capacity(device: DeviceLike, nbytes: int) -> None:
    """Change the memory of one card; below what is allocated, nothing more is granted until enough is freed."""
    _driver.set_capacity(_ordinal(device), nbytes)


class device:  # noqa: N801 (torch's name)
    """A block of code with another current card. A negative ordinal or None leaves it as it is."""

    def __init__(self, device: DeviceLike) -> None:
        leave = device is None or (isinstance(device, int) and device < 0)
        self._card = None if leave else _ordinal(device)
        self._outer = 0

    def __enter__(self) -> None:
        self._outer = current_device()
        if self._card is not None:
            set_device(self._card)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        set_device(self._outer)


class device_of(device):  # noqa: N801 (torch's name)
    """A block of code with a tensor's card as current card; other tensors leave it as it is."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor.device if tensor.device.type == "vcard" else None)


# ---- memory


def memory_allocated(device: DeviceLike = None) -> int:
    """Bytes in use on a card, each block rounded up to 512."""
    return _driver.ledger(_ordinal(device)).used_nbytes


def max_memory_allocated(device: DeviceLike = None) -> int:
    """The most bytes in use since the start or the last reset_peak_memory_stats."""
    return _driver.ledger(_ordinal(device)).peak_nbytes


def memory_reserved(device: DeviceLike = None) -> int:
    """The same as memory_allocated: nothing is cached."""
    return memory_allocated(device)


def max_memory_reserved(device: DeviceLike = None) -> int:
    """The same as max_memory_allocated: nothing is cached."""
    return max_memory_allocated(device)


def reset_peak_memory_stats(device: DeviceLike = None) -> None:
    """Start measuring the peak anew."""
    _driver.reset_peak(_ordinal(device))


def mem_get_info(device: DeviceLike = None) -> tuple[int, int]:
    """(free, total) bytes of a card."""
    return _driver.memory_info(_ordinal(device))


def memory_stats(device: DeviceLike = None) -> dict[str, int]:
    """The ledger of a card under the keys of torch.cuda.memory_stats."""
    ledger = _driver.ledger(_ordinal(device))
    used = {"current": ledger.used_nbytes, "peak": ledger.peak_nbytes}
    stats = {f"{kind}.all.{when}": used[when] for kind in ("allocated_bytes", "reserved_bytes") for when in used}
    return stats | {"num_device_alloc": ledger.allocation_count, "num_ooms": ledger.refusal_count}


def empty_cache() -> None:
    """Nothing to do: nothing is cached."""


# ---- random numbers


def manual_seed(seed: int) -> None:
    """Seed the current card's generator."""
    default_generators[current_device()].manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed every card's generator; torch.manual_seed calls it."""
    for generator in default_generators:
        generator.manual_seed(seed)


def seed() -> int:
    """Seed the current card's generator with a number nobody chose, and return it."""
    return default_generators[current_device()].seed()


def initial_seed() -> int:
    """The seed of the current card's generator."""
    return default_generators[current_device()].initial_seed()


def get_rng_state(device: DeviceLike = "vcard") -> torch.Tensor:
    """The state of a card's generator, a CPU tensor of bytes."""
    return default_generators[_ordinal(device)].get_state()


def set_rng_state(new_state: torch.Tensor, device: DeviceLike = "vcard") -> None:
    """Put a card's generator into a state that get_rng_state gave."""
    default_generators[_ordinal(device)].set_state(new_state)


# ---- streams


def synchronize(device: DeviceLike = None) -> None:
    """Wait for all the work of a card.

    Raises:
        torch.AcceleratorError: if a queued copy failed that nobody was told of yet.
    """
    torch.accelerator.synchronize(_ordinal(device))


def current_stream(device: DeviceLike = None) -> torch.Stream:
    """The stream this thread works in on a card."""
    return torch.accelerator.current_stream(_ordinal(device))


def default_stream(device: DeviceLike = None) -> torch.Stream:
    """The stream of a card that is synchronous: its work is done when the call returns."""
    return torch.Stream(stream_id=0, device_index=_ordinal(device), device_type=_PRIVATE_DEVICE_TYPE)


def set_stream(stream: torch.Stream) -> None:
    """Make `stream` the one this thread works in on its card; the current card stays."""
    torch.accelerator.set_stream(stream)


def stream(stream: torch.Stream) -> torch.Stream:
    """A block of code that works in `stream`: torch streams are such blocks themselves."""
    return stream


def hazards() -> list[str]:
    """What would corrupt memory on GPUs: tensors freed while another stream may still use them, a sentence each.

    A use in another stream than the tensor's own must be over, to the knowledge of that stream or of the program
    (through events and waiting), or be announced by `tensor.record_stream`, before the tensor is freed. It does not
    matter how fast the copies are. Uses are watched from the first side stream on; at most 100 sentences are kept.
    """
    return list(torch.ops.vcard.hazards())


def reset_hazards() -> None:
    """Forget the hazards found so far."""
    torch.ops.vcard.reset_hazards()


# ---- what torch asks


def get_amp_supported_dtype() -> list[torch.dtype]:
    """The types that torch.autocast("vcard") may cast to."""
    return [torch.bfloat16, torch.float16]


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Always."""
    return True


def _is_in_bad_fork() -> bool:
    return False


def _loaded_library() -> ctypes.PyDLL:
    if _library is None:
        raise RuntimeError("there are no virtual cards yet; call poolrt.virtual(cards=2, memory='4GiB') first")
    return _library


def _ordinal(device: DeviceLike) -> int:
    """The ordinal that `device` names, checked."""
    index = _index_of(device)
    card = current_device() if index is None else index
    if not 0 <= card < device_count():
        raise RuntimeError(f"vcard: invalid device ordinal {card}; there are {device_count()} virtual cards")
    return card


def _index_of(device: DeviceLike) -> int | None:
    if device is None or isinstance(device, int):
        return device
    named = torch.device(device)
    if named.type != "vcard":
        raise ValueError(f"expected a virtual card such as 'vcard:0', not {str(named)!r}")
    return named.index
