"""Every kernel that plans ask for, and lists of them that compilers read."""

from collections.abc import Iterable, Iterator

from poolrt.errors import ConfigurationError
from poolrt.transfer.kernels.dtypes import ITEM_NBYTES, NAMES, WORDS, common_type


def packs(*names: str) -> list[int]:
    """The pack sizes that types of these names may come in."""
    widest = max(ITEM_NBYTES[name] for name in names)
    return [items for items in (1, 2, 4, 8, 16) if items * widest <= 16]


def copies() -> Iterator[tuple[str, ...]]:
    """(source, target, items, index) of copy_strided."""
    for index in ("int32", "int64"):
        yield from ((word, word, "1", index) for word in WORDS.values())
    for source in NAMES:
        for target in NAMES:
            if source != target:
                yield from ((source, target, str(items), "int32") for items in packs(source, target))
    yield ("float32", "float64", "1", "int64")


def sums() -> Iterator[tuple[str, ...]]:
    """(source, common, target, items, index) of add_strided."""
    for source in NAMES:
        for target in NAMES:
            try:
                common = common_type(target, source)
            except ConfigurationError:
                continue
            yield from ((source, common, target, str(items), "int32") for items in packs(source, target))
    yield ("float32", "float32", "float32", "4", "int64")


def each_type_once() -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """(copies, sums) in which each type is the source once and the target once, in its largest packs."""
    partners = dict(zip(NAMES, NAMES[5:] + NAMES[:5], strict=True))
    largest = [(one, other, str(packs(one, other)[-1]), "int32") for one, other in partners.items()]
    copied = [types for types in copies() if types in largest or types[0] in WORDS.values()]
    summed = [types for types in sums() if types[0] == types[2] and types[3] == str(packs(types[0])[-1])]
    return copied, summed


def for_host() -> str:
    """Lines of KERNEL_LIST, see tests/csrc/kernels_library.cpp."""
    lines = [_line("COPY", "copy_strided", types) for types in copies()]
    return "\n".join(lines + [_line("ADD", "add_strided", types) for types in sums()])


def _line(macro: str, kernel: str, types: tuple[str, ...]) -> str:
    return f'{macro}("{kernel}<{", ".join(types)}>", {", ".join(types)})'


def for_cuda(copied: Iterable[tuple[str, ...]], summed: Iterable[tuple[str, ...]]) -> str:
    """Explicit instantiations, to be put behind csrc/kernels.cu."""
    lines = [_instance("copy_strided", types, types[0], types[1]) for types in copied]
    return "\n".join(lines + [_instance("add_strided", types, types[0], types[2]) for types in summed])


def _instance(kernel: str, types: tuple[str, ...], source: str, target: str) -> str:
    return f"template __global__ void {kernel}<{', '.join(types)}>({target}*, const {source}*, int64, const Walk);"
