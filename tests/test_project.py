"""What holds for the repository as a whole: what the README promises, and what stays out of the files."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import poolrt

ROOT = Path(__file__).parents[1]
TEXT = {".py", ".pyi", ".md", ".toml", ".cpp", ".hpp", ".cu", ".json", ".yml", ".yaml", ".txt", ""}
ABSOLUTE_PATH = re.compile(r"(?<![\w.\-/:$)}])/(?:work|home|opt|root|mnt|Users|srv|data)/\w")
_SIGNS = ("TO" + "DO", "FIX" + "ME", "X" * 3, "raise Not" + "ImplementedError")
UNFINISHED = re.compile(rf"\b(?:{'|'.join(_SIGNS)})\b")


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only a git checkout knows which files are the project's")
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix in TEXT]


def lines_that_match(pattern: re.Pattern[str], files: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    assert ABSOLUTE_PATH.search('open("/' + 'home/someone/x")')
    assert lines_that_match(ABSOLUTE_PATH, tracked_files()) == []


def test_nothing_is_left_unfinished() -> None:
    assert UNFINISHED.search("# TO" + "DO: later")
    assert lines_that_match(UNFINISHED, [path for path in tracked_files() if path.suffix != ".md"]) == []


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench", "gpu-check", "clean"])
def test_make_knows_the_targets_that_are_described(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


def test_links_between_documents_lead_somewhere() -> None:
    documents = [path for path in tracked_files() if path.suffix == ".md"]
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            assert target.startswith("http") or (document.parent / target).exists(), f"{document.name}: {target}"


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_same_everywhere() -> None:
    version = project()["version"]
    assert poolrt.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_says_why_it_is_there() -> None:
    extras = project()["optional-dependencies"]
    requirements = [*project()["dependencies"], *(item for extra in extras.values() for item in extra)]
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    named_after_their_work = ("poolrt[", "mypy", "pytest>", "pytest-timeout", "ruff")
    for requirement in requirements:
        stated = [line for line in lines if f'"{requirement}"' in line and "#" in line]
        assert stated or requirement.startswith(named_after_their_work), requirement


@pytest.mark.slow
def test_a_wheel_is_the_whole_package_with_the_sources_of_what_is_built_at_first_use(tmp_path: Path) -> None:
    source, site = _copied(tmp_path / "source"), tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "-q", "-w", str(tmp_path), str(source)], check=True, capture_output=True, timeout=240)
    (wheel,) = tmp_path.glob("poolrt-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
        names = set(packed.namelist())
    python = {
        str(path.relative_to(source)) for ending in ("py", "json") for path in source.glob(f"poolrt/**/*.{ending}")
    }
    at_first_use = {path.name for path in (source / "csrc").glob("vcard*")}
    at_first_use |= {"driver.hpp", "pool_table.hpp", "kernels.cu", "kernels_numbers.cuh"}
    assert python | {f"poolrt/csrc/{name}" for name in at_first_use} <= names
    assert any(re.fullmatch(r"poolrt/_C\..*so", name) for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"poolrt"}, "nothing else is installed"
    asked = "from poolrt.virtual_cards import build; print(build.source_directory())"
    command = [sys.executable, "-c", asked]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    told = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(told.strip()) == (site / "poolrt" / "csrc").resolve()


def _copied(target: Path) -> Path:
    """The checkout, so that building a wheel writes nothing into it."""
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.so", "__pycache__", ".*_cache", "shared")
    return Path(shutil.copytree(ROOT, target, ignore=ignored))
