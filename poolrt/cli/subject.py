"""`FILE.py:NAME` or `package.module:NAME`: a function of the user's that makes a model and one batch for it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from poolrt.api import discover, virtual
from poolrt.errors import ConfigurationError
from poolrt.topology.box import box_names
from poolrt.topology.request import VirtualRequest, parse_cards
from poolrt.topology.topology import Topology

Subject = Callable[[], tuple[nn.Module, Any]]

_FORM = "write FILE.py:NAME or package.module:NAME, where NAME is a function that returns (model, sample)"


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Declare what is looked at, and on which cards."""
    parser.add_argument("subject", metavar="FILE.py:NAME", help="a function that returns (model, sample)")
    cards = parser.add_mutually_exclusive_group()
    cards.add_argument(
        "--virtual", metavar="2x4GiB", help="virtual cards of these sizes instead of the machine's cards"
    )
    cards.add_argument("--box", metavar="NAME", help=f"virtual cards as in a recorded box: {', '.join(box_names())}")
    parser.add_argument("--micro-batches", metavar="N", help="a number, or auto", default="auto")
    parser.add_argument("--batch-dim", metavar="D", type=int, default=0, help="dimension along which samples lie")
    parser.add_argument("--json", action="store_true", help="print JSON, schema 1")


def cards_of(options: argparse.Namespace) -> Topology:
    """The cards that were asked for, else those of the machine or of POOLRT_CARDS.

    Raises:
        ConfigurationError: if there is no such box, or the sizes cannot be read.
    """
    if options.box:
        return virtual(box=options.box)
    if options.virtual is None:
        return discover()
    request = parse_cards(f"virtual:{options.virtual}")
    assert isinstance(request, VirtualRequest)
    return virtual(len(request.memory_bytes), list(request.memory_bytes))


def micro_batches_of(options: argparse.Namespace) -> Any:
    """A number, or the word that was written, which planning knows or refuses."""
    return int(options.micro_batches) if options.micro_batches.isdecimal() else options.micro_batches


def load_subject(text: str) -> Subject:
    """The function that `text` names. The same random numbers are drawn at every call of it.

    Raises:
        ConfigurationError: if there is no such file, module or function. The function that is returned raises it too,
            if the user's gives something else than a model and a sample.
    """
    place, _, name = text.rpartition(":")
    function = getattr(_module(place, text), name, None)
    if not callable(function):
        raise ConfigurationError(f"{place} has no function {name!r}; {_FORM}")

    def make() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        made = function()
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
            raise ConfigurationError(f"{text} returned {type(made).__name__}, not a model and a sample; {_FORM}")
        return made

    return make


def _module(place: str, text: str) -> ModuleType:
    if not place:
        raise ConfigurationError(f"{text!r} names no function; {_FORM}")
    if not place.endswith(".py"):
        return _imported(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise ConfigurationError(f"there is no file {place}; {_FORM}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as Python does for a script, so that it finds its neighbours
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _imported(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # the module is there, what it needs is not
        raise ConfigurationError(f"there is no module {name}; {_FORM}") from error
    finally:
        sys.path.remove("")
