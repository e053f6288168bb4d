"""Which cards CUDA_VISIBLE_DEVICES leaves, as the CUDA programming guide defines it. Pure.

unset                       all cards
""  or "-1"                 none
"1,0"                       by number, in the order given
"GPU-6968dfc2,GPU-9b"       by UUID or any beginning of one that fits a single card
"0,7,1" with four cards     the list ends before the first entry that fits no card
"MIG-..."                   a slice of a card: refused
"""

from __future__ import annotations

from collections.abc import Sequence

from poolrt.errors import ConfigurationError


def visible_cards(value: str | None, uuids: Sequence[str | None]) -> tuple[int, ...]:
    """Positions of the cards that CUDA shows, in CUDA's order.

    Args:
        value: of CUDA_VISIBLE_DEVICES; None if it is not set.
        uuids: of all cards, in the order in which CUDA numbers them when nothing is hidden.
    """
    if value is None:
        return tuple(range(len(uuids)))
    chosen: list[int] = []
    for entry in value.split(","):
        position = _position(entry.strip(), uuids)
        if position is None:
            break
        if position in chosen:
            return ()  # the same card twice: CUDA then shows none
        chosen.append(position)
    return tuple(chosen)


def names_mig_slice(value: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names a MIG slice."""
    return value is not None and any(entry.strip().upper().startswith("MIG-") for entry in value.split(","))


def refuse_mig(value: str | None) -> None:
    """Refuse MIG slices by name.

    Raises:
        ConfigurationError: if CUDA_VISIBLE_DEVICES names a MIG slice.
    """
    if names_mig_slice(value):
        raise ConfigurationError(
            f"CUDA_VISIBLE_DEVICES={value} names a MIG slice. Slices cannot reach each other, and CUDA shows a process "
            "only one of them, so there is nothing to pool: name whole cards after `nvidia-smi -mig 0`, or cut one "
            'card into logical cards with poolrt.logical("cuda:0", cards=2, memory="8GiB")'
        )


def _position(entry: str, uuids: Sequence[str | None]) -> int | None:
    if entry.upper().startswith("GPU-"):
        fitting = [at for at, uuid in enumerate(uuids) if uuid and uuid.lower().startswith(entry.lower())]
        return fitting[0] if len(fitting) == 1 else None
    if not entry.isdecimal() or int(entry) >= len(uuids):
        return None
    return int(entry)
