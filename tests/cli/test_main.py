import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from poolrt.cli.main import COMMANDS, make_parser

# What scripts of users may rely on. An option that goes, or comes, changes this table on purpose.
OPTIONS = {
    "topo": {"--from", "--box", "--measure", "--json", "--plot"},
    "doctor": {"--from", "--probe", "--json"},
    "plan": {"--virtual", "--box", "--micro-batches", "--batch-dim", "--json", "--optimizer", "--spill"},
    "verify": {"--virtual", "--box", "--micro-batches", "--batch-dim", "--json"},
    "bench copy": {"--pairs", "--sizes", "--quick", "--virtual", "--link", "--paced", "--json"},
}


def commands(parser, name=""):
    """(words, parser) of every command that takes options, also of those within a command."""
    inner = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield name, parser
    for choices in inner:
        for word, below in choices.items():
            yield from commands(below, f"{name} {word}".strip())


def test_the_options_are_those_that_are_promised():
    found = {
        name: {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
        for name, parser in commands(make_parser())
    }
    assert found == OPTIONS


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
def test_every_command_explains_itself(run, command):
    code, out, _ = run(command.NAME, "--help")
    assert code == 0
    assert "usage: poolrt " + command.NAME in out


REFUSED = [(), ("nonsense",), ("topo", "--nonsense"), ("topo", "--box", "a", "--from", "b"), ("bench",)]


@pytest.mark.parametrize("words", REFUSED, ids=str)
def test_other_words_are_refused(run, words):
    code, _, err = run(*words)
    assert code == 2
    assert "usage: poolrt" in err


def test_the_package_runs_as_a_program():
    words = [sys.executable, "-m", "poolrt", "topo", "--box", "2x-rtx4090"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PHB" in done.stdout


def test_the_console_script_is_this_program():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["poolrt"].partition(":")
    assert (module, function) == ("poolrt.cli.main", "main")
