"""Builds `poolrt._C` with plain g++ (no torch and no CUDA) and ships the sources that are compiled at first use."""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_py import build_py

CORE_SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp") if not path.name.startswith("vcard_"))
CORE_HEADERS = sorted(str(path) for path in Path("csrc").glob("*.hpp") if not path.name.startswith("vcard_"))
FIRST_USE_SOURCES = ["driver.hpp", "pool_table.hpp", "vcard_*.hpp", "vcard_*.cpp", "*.cu"]


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


setup(
    cmdclass={"build_py": BuildPyWithSources},
    ext_modules=[
        Pybind11Extension(
            "poolrt._C",
            CORE_SOURCES,
            depends=CORE_HEADERS,
            cxx_std=17,
            extra_compile_args=["-O2", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"],
            libraries=["dl"],
        )
    ],
)
