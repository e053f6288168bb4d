"""Turns the virtual cards on: loads the torch backend `vcard` and says how many cards there are and how large.

    configure([4 * GIB, 4 * GIB])
    x = torch.ones(3, device="vcard:1")        # memory of card 1, charged to its ledger
    torch.vcard.memory_allocated(1)            # 512

A virtual card runs every operator's CPU kernel on host memory, so results are the CPU's, bit for bit.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Sequence

import torch
from torch.utils.backend_registration import generate_methods_for_privateuse1_backend, rename_privateuse1_backend

import poolrt._C as _C  # not `from poolrt`: that would close a circle of imports
from poolrt.errors import ConfigurationError, DriverError
from poolrt.virtual_cards import device_module, links

DEVICE_TYPE = "vcard"
MAX_CARDS = _C.MAX_CARDS

_loading = threading.Lock()
_loaded = False


def configure(capacities: Sequence[int], refused: Iterable[tuple[int, int]] = ()) -> None:
    """Have one virtual card per capacity, in bytes. The last call is what the machine has.

    In `refused` pairs (card, peer) the card cannot map the peer's memory: no tensor of a pool lies on both.
    Tensors on cards keep their memory. The first call of a process loads the backend, and builds it where that was
    never done (about 20 s).

    Raises:
        ConfigurationError: for no card or more than MAX_CARDS, a capacity that is not positive, a process that uses
            CUDA already, or one where another private torch backend is in place.
        BuildError: if the backend has to be built and cannot be.
    """
    _check_capacities(capacities)
    with _loading:
        if not is_loaded():
            _load(capacities)
        _C.host_driver().configure(list(capacities))
        for card, peer in refused:
            _C.host_driver().set_peer(card, peer, False)
        links.begin_anew()
        device_module.adopt_configuration()


def is_loaded() -> bool:
    """Whether this process has the backend: `torch.vcard` is there from then on."""
    return _loaded


def _check_capacities(capacities: Sequence[int]) -> None:
    if not 1 <= len(capacities) <= MAX_CARDS:
        raise ConfigurationError(f"there can be 1 to {MAX_CARDS} virtual cards, not {len(capacities)}")
    for card, nbytes in enumerate(capacities):
        if nbytes <= 0:
            raise ConfigurationError(f"virtual card {card} must have a positive number of bytes, not {nbytes}")


def _load(capacities: Sequence[int]) -> None:
    global _loaded
    if torch.cuda.is_initialized():
        raise ConfigurationError(
            "this process uses CUDA already, and virtual cards would take CUDA's place as torch's accelerator; "
            "make the virtual cards in a process of their own (CUDA_VISIBLE_DEVICES= hides the GPUs)"
        )
    from poolrt.virtual_cards.build import virtual_card_library  # here: `-m poolrt.virtual_cards.build` runs it

    library = ctypes.CDLL(str(virtual_card_library()))
    library.vcard_load.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.vcard_last_error.restype = ctypes.c_char_p
    _claim_private_backend()
    _C.host_driver().configure(list(capacities))
    status = library.vcard_load(_C.host_table_address(), _C.pool_table_address())
    if status != 0:
        raise DriverError(f"the virtual-card backend did not load: {library.vcard_last_error().decode()}")
    device_module.attach(library)
    torch.ones((), requires_grad=True).backward()  # the engine has its threads from here on; see vcard_engine.hpp
    library.vcard_grow_autograd()
    torch._register_device_module(DEVICE_TYPE, device_module)
    sys.modules[f"torch.{DEVICE_TYPE}"] = device_module
    generate_methods_for_privateuse1_backend()
    _loaded = True
    atexit.register(_await_autograd, os.getpid())


def _await_autograd(process: int) -> None:
    """At exit: have autograd's threads let go of what they ran last.

    They do so a moment after `backward` has returned, and one that needs the interpreter for it when that is gone takes
    the process down ("terminate called without an active exception"). A backward of nothing comes after that moment,
    and its own leaf is gone when the thread has let go of that too. Gives up after a second.
    """
    if os.getpid() != process:
        return  # a forked child has no such threads
    deadline = time.monotonic() + 1.0
    for card in range(_C.host_driver().device_count()):
        leaf = torch.empty(0, device=f"{DEVICE_TYPE}:{card}", requires_grad=True)
        leaf.backward(leaf.detach())
        held = weakref.ref(leaf)
        del leaf
        while held() is not None and time.monotonic() < deadline:
            time.sleep(1e-4)
    time.sleep(1e-3)


def _claim_private_backend() -> None:
    """Torch has room for one private backend; it may be named once."""
    try:
        rename_privateuse1_backend(DEVICE_TYPE)
    except RuntimeError as error:
        name = torch._C._get_privateuse1_backend_name()
        raise ConfigurationError(
            f"torch's place for a private backend is taken by {name!r} in this process; "
            "use the virtual cards in a process without it"
        ) from error
