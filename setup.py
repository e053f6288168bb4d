"""Builds `poolrt._C` with plain g++ (no torch and no CUDA) and ships the sources that are compiled at first use."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

CORE_SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp") if not path.name.startswith("vcard_"))
CORE_HEADERS = sorted(str(path) for path in Path("csrc").glob("*.hpp") if not path.name.startswith("vcard_"))
FIRST_USE_SOURCES = ["driver.hpp", "pool_table.hpp", "vcard_*.hpp", "vcard_*.cpp", "*.cu", "kernels_*.cuh"]


class BuildPyWithSources(build_py):
    """Copies the sources of the virtual-card backend to poolrt/csrc in the wheel.

    They are compiled on the user's machine against the torch found there. A checkout has them in csrc/ already.
    """

    def run(self) -> None:
        """Build the Python files, then place the C++ sources beside them."""
        super().run()
        if self.editable_mode:
            return
        for pattern in FIRST_USE_SOURCES:
            for source in sorted(Path("csrc").glob(pattern)):
                target = Path(self.build_lib) / "poolrt" / "csrc" / source.name
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))


def core_extension(**options: Any) -> Extension:
    """`poolrt._C`. Where pybind11 is not installed, the headers that torch ships are taken (`make VENV=none`)."""
    flags = ["-O2", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"]
    try:
        from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
    except ImportError:
        torch = importlib.util.find_spec("torch")
        if torch is None or not torch.submodule_search_locations:
            raise
        include = Path(torch.submodule_search_locations[0]) / "include"
        return Extension(include_dirs=[str(include)], extra_compile_args=["-std=c++17", *flags], **options)
    ParallelCompile(default=os.cpu_count()).install()
    return Pybind11Extension(cxx_std=17, extra_compile_args=flags, **options)


setup(
    cmdclass={"build_py": BuildPyWithSources},
    ext_modules=[
        core_extension(name="poolrt._C", sources=CORE_SOURCES, depends=CORE_HEADERS, libraries=["dl"], language="c++")
    ],
)
