"""Builds at first use: once, whole, or with the compiler's own words."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from poolrt.errors import BuildError
from poolrt.virtual_cards import build

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(tmp_path) -> build.Recipe:
    """A recipe of two units that is built in a moment."""
    units = []
    for name, value in (("one", 1), ("two", 2)):
        source = tmp_path / f"{name}.cpp"
        source.write_text(f'extern "C" int {name}() {{ return {value}; }}\n')
        units.append((source,))
    return build.Recipe(
        name="small",
        description="a small library",
        compiler=build.find_compiler(),
        units=tuple(units),
        compile_flags=("-fPIC", "-O0"),
    )


def test_builds_once_and_says_so(small, tmp_path, capfd):
    first = build.build(small, tmp_path / "cache")
    assert "building a small library" in capfd.readouterr().err
    library = ctypes.CDLL(str(first))
    assert (library.one(), library.two()) == (1, 2)
    made = first.stat().st_mtime_ns
    assert build.build(small, tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == made
    assert capfd.readouterr().err == ""


def test_nothing_but_the_library_is_kept(small, tmp_path):
    library = build.build(small, tmp_path / "cache")
    assert sorted(path.name for path in library.parent.iterdir()) == ["libsmall.so", "lock"]


@pytest.mark.parametrize("change", ["source", "flag", "environment"])
def test_a_change_is_another_library(small, change):
    key = small.key()
    if change == "source":
        small.units[0][0].write_text('extern "C" int one() { return 10; }\n')
    other = {
        "source": small,
        "flag": replace(small, compile_flags=("-fPIC", "-O1")),
        "environment": replace(small, environment="torch 0"),
    }[change]
    assert other.key() != key


BUILD_IN_A_PROCESS = """
import sys
from pathlib import Path
from poolrt.virtual_cards import build
folder = Path(sys.argv[1])
recipe = build.Recipe(name="small", description="a small library", compiler=build.find_compiler(),
                      units=((folder / "one.cpp",), (folder / "two.cpp",)), compile_flags=("-fPIC", "-O0"))
print(build.build(recipe, folder / "cache"))
"""


def test_two_processes_at_once_make_one_good_library(small, tmp_path):
    command = [sys.executable, "-c", BUILD_IN_A_PROCESS, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    paths = {out.strip() for out, _ in said}
    assert len(paths) == 1
    assert sum("building" in err for _, err in said) == 1
    assert ctypes.CDLL(paths.pop()).two() == 2


def test_a_compiler_that_fails_is_quoted(small, tmp_path):
    small.units[1][0].write_text("int broken( { }\n")
    with pytest.raises(BuildError, match="broken"):
        build.build(small, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"g\+\+"):
        build.virtual_card_recipe()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="no-such-compiler"):
        build.find_compiler()


def test_a_cache_that_cannot_be_written(small, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(BuildError, match="POOLRT_CACHE_DIR"):
        build.build(small, tmp_path / "cache")


def test_cache_directory_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("POOLRT_CACHE_DIR", str(tmp_path))
    assert build.cache_directory() == tmp_path
    monkeypatch.delenv("POOLRT_CACHE_DIR")
    assert build.cache_directory() == Path.home() / ".cache" / "poolrt"


def test_every_source_is_in_one_unit():
    recipe = build.virtual_card_recipe()
    compiled = [source.name for unit in recipe.units for source in unit]
    assert sorted(compiled) == sorted(path.name for path in (ROOT / "csrc").glob("vcard_*.cpp"))
    assert "driver.hpp" in {header.name for header in recipe.headers}
