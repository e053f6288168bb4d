from pathlib import Path

import pytest
import tqdm


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples are scripts: they find each other because their own folder comes first on the path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))


@pytest.fixture(autouse=True)
def no_monitor_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving and loading weights shows a tqdm bar, whose first one starts a thread that never ends."""
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)
