"""Who may import whom. The rooms of the package form a ladder; a step up it is refused here, by name.

api
 |----------> runtime -----> memory, transfer, planning (siblings: never each other)
 |----> reporting, arguments ----^
 |----> virtual_cards            |
 |               |               |
 '-------------> topology <------'
                 |
                 errors, units, keeping, _C

Within runtime: its own files --> measuring --> lanes --> batches, placing --> regions --> state, sharded
Within regions: finding --> running --> its own files
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "poolrt"
FOUNDATION = {"errors", "units", "keeping"}
MAY_IMPORT = {
    "errors": set(),
    "units": {"errors"},
    "keeping": set(),
    "_C": set(),
    "topology": FOUNDATION | {"_C"},
    "memory": FOUNDATION | {"topology", "_C"},
    "transfer": FOUNDATION | {"topology", "_C"},
    "planning": FOUNDATION | {"topology"},
    "virtual_cards": FOUNDATION | {"topology", "_C"},
    "proof": FOUNDATION | {"topology", "transfer", "virtual_cards"},
    "pool": FOUNDATION | {"memory", "proof", "topology"},
    "reporting": FOUNDATION | {"planning", "topology"},
    "verification": FOUNDATION | {"planning", "runtime"},
    "arguments": FOUNDATION | {"planning", "runtime", "topology"},
    "runtime": FOUNDATION | {"planning", "memory", "transfer", "topology"},
}
ABOVE_ALL = {"api", "cards", "cli", "integrations", "__init__", "__main__"}
"""these may import every room"""

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports_of(path: Path, nodes: Iterator[ast.AST]) -> set[str]:
    """Every module that these import statements may load, with relative names made whole."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= names if names <= MODULES.keys() | {"poolrt._C"} else names | {base}
    return found


def room_of(module: str) -> str:
    """poolrt.planning.plan -> planning; poolrt -> __init__."""
    return (*module.split("."), "__init__")[1]


def room_of_import(name: str) -> str:
    """As room_of, for a name that may be a function of the package: poolrt.shard -> __init__."""
    room = room_of(name)
    return room if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists() or room == "_C" else "__init__"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_room_imports_only_what_is_below_it(path: Path) -> None:
    room = room_of(module_name(path))
    if room in ABOVE_ALL:
        return
    names = {name for name in imports_of(path, ast.walk(TREES[path])) if name.split(".")[0] == "poolrt"}
    rooms = {room_of_import(name) for name in names if name != "poolrt"}
    assert rooms <= MAY_IMPORT[room] | {room}


RUNTIME = ("state", "sharded", "regions", "placing", "batches", "lanes", "measuring")
"""the rooms of the runtime from the bottom up; its own files are above them all"""


@pytest.mark.parametrize("path", sorted((PACKAGE / "runtime").rglob("*/*.py")), ids=module_name)
def test_a_room_of_the_runtime_imports_only_what_is_below_it(path: Path) -> None:
    room = path.relative_to(PACKAGE / "runtime").parts[0]
    known = RUNTIME[: RUNTIME.index(room) + 1]
    names = {name for name in imports_of(path, ast.walk(TREES[path])) if name.startswith("poolrt.runtime.")}
    assert {name.split(".")[2] for name in names} <= set(known)


def test_regions_run_without_what_found_them() -> None:
    regions = "poolrt.runtime.regions"
    loaded = {
        name: {other for other in imports_of(path, ast.walk(TREES[path])) if other.startswith(f"{regions}.")}
        for name, path in MODULES.items()
        if name.startswith(f"{regions}.")
    }
    for name, others in loaded.items():
        rooms = {other.removeprefix(f"{regions}.").partition(".")[0] for other in others}
        if not name.startswith(f"{regions}.finding"):
            assert "finding" not in rooms, name
        if not name.startswith((f"{regions}.finding", f"{regions}.running")):
            assert "running" not in rooms, name


def test_only_discovery_asks_the_driver() -> None:
    asking = {
        module_name(path)
        for path in (PACKAGE / "topology").rglob("*.py")
        if any(room_of_import(name) == "_C" for name in imports_of(path, ast.walk(TREES[path])) if "poolrt" in name)
    }
    assert asking <= {"poolrt.topology.discover"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "planning").rglob("*.py")), ids=module_name)
def test_planning_never_imports_torch(path: Path) -> None:
    assert not {name for name in imports_of(path, ast.walk(TREES[path])) if name.split(".")[0] == "torch"}


def test_no_import_cycles() -> None:
    edges = {
        name: {other for other in imports_of(path, iter(TREES[path].body)) if other in MODULES and other != name}
        for name, path in MODULES.items()
    }
    finished: list[str] = []
    while True:
        ready = [name for name in edges if name not in finished and edges[name] <= set(finished)]
        if not ready:
            break
        finished += ready
    assert set(edges) - set(finished) == set(), "these modules import each other in a circle"


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions, and methods of classes, without a leading underscore; not what is inside functions."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("_"):
            continue
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        for member in members:
            if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
                yield member


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_public_functions_are_annotated_and_described(path: Path) -> None:
    for function in public_functions(TREES[path]):
        parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        bare = [item.arg for item in parameters if item.annotation is None and item.arg not in ("self", "cls", "ctx")]
        overload = any(getattr(item, "id", "") == "overload" for item in function.decorator_list)
        assert bare == [], f"{function.name}, line {function.lineno}"
        assert function.returns is not None, f"{function.name}, line {function.lineno}"
        assert overload or ast.get_docstring(function), f"{function.name}, line {function.lineno}"
