import os
from pathlib import Path

import pytest

from poolrt.keeping import cache_directory, write_whole


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("POOLRT_CACHE_DIR", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.setenv("POOLRT_CACHE_DIR", "")
    assert cache_directory() == Path.home() / ".cache" / "poolrt"


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "folder" / "x.json"
    write_whole(path, "old")
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["x.json"]


def test_after_a_failure_the_old_text_stands_and_nothing_is_left(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_whole(path, "old")

    def refuse(source, target):
        raise OSError("full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="full"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.json"]
