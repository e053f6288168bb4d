"""Asking NVML: most questions have no answer on some card, and that is no error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Asker:
    """Calls functions of nvidia-ml-py by name and remembers what it was not allowed to see.

    An answer is None where the package or the driver lacks the function, the card has no such thing, or the user lacks
    the right. A lost card and a driver that is about to be updated answer None too, and are named in `unseen`.
    """

    _NO_SUCH_THING = ("NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "INVALID_ARGUMENT", "NOT_FOUND", "NO_DATA", "DEPRECATED",
                      "ARGUMENT_VERSION_MISMATCH")  # fmt: skip

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        names = (name for name in dir(nvml) if name.startswith("NVML_ERROR_"))
        self._codes = {getattr(nvml, name): name.removeprefix("NVML_ERROR_") for name in names}
        self.unseen: list[str] = []

    def __call__(self, function: str, *arguments: Any) -> Any:
        """The answer of `nvml<function>`, or None."""
        call: Callable[..., Any] | None = getattr(self._nvml, f"nvml{function}", None)
        if call is None:
            return None
        try:
            answer = call(*arguments)
        except self._nvml.NVMLError as error:
            self._remember(function, self.name_of(error))
            return None
        return answer.decode() if isinstance(answer, bytes) else answer

    def name_of(self, error: Any) -> str:
        """The word of an NVMLError: "NO_PERMISSION"."""
        return self._codes.get(getattr(error, "value", -1), "UNKNOWN")

    def constant(self, name: str) -> int | None:
        """A number that the package names, such as "NVML_FI_DEV_NVLINK_GET_SPEED"; None if this version does not."""
        value = getattr(self._nvml, name, None)
        return value if isinstance(value, int) else None

    def make(self, name: str) -> Any:
        """A structure of the package, for questions that want one to fill; None if this version lacks it."""
        structure = getattr(self._nvml, name, None)
        return None if structure is None else structure()

    def fields(self, handle: Any, *wanted: tuple[str, int]) -> list[int | None]:
        """Field values of a card: each asked for by the name of its constant and a scope (the link's number).

        The whole call succeeds where single values fail, so each value's own return code is looked at.
        """
        known = [(self.constant(name), scope) for name, scope in wanted]
        if any(number is None for number, _ in known):
            return [None] * len(wanted)
        values = self("DeviceGetFieldValues", handle, known)
        if values is None:
            return [None] * len(wanted)
        return [None if value.nvmlReturn else _number(value) for value in values]

    def _remember(self, function: str, error: str) -> None:
        if error in self._NO_SUCH_THING:
            return
        sentence = f"NVML answers {error} to {function}"
        if sentence not in self.unseen:
            self.unseen.append(sentence)


def _number(value: Any) -> int:
    """A field's union, read as its type says (nvmlValueType_t)."""
    names = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
    return int(getattr(value.value, names.get(value.valueType, "ullVal")))
