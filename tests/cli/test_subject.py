import sys

import pytest
import torch

from poolrt.cli.subject import load_subject
from poolrt.errors import ConfigurationError

SOURCE = """
import torch
from neighbour_of_a_script import WIDTH

def perceptron():
    return torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))), torch.randn(6, WIDTH)

def large():
    return torch.nn.Sequential(torch.nn.Linear(3000, 3000), torch.nn.Linear(3000, 3000)), torch.randn(2, 3000)

def batch_norm():
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.BatchNorm1d(WIDTH)), torch.randn(6, WIDTH)

def model_alone():
    return torch.nn.Linear(2, 2)

number = 3
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A training script with a neighbour; what it leaves in the interpreter goes again."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour_of_a_script.py").write_text("WIDTH = 16\n")
    path = tmp_path / "script_of_a_user.py"
    path.write_text(SOURCE)
    yield str(path)
    for name in ("neighbour_of_a_script", "script_of_a_user"):
        sys.modules.pop(name, None)


def test_a_function_in_a_file_is_found_and_draws_the_same_numbers(script):
    make = load_subject(f"{script}:perceptron")
    (first, x), (second, y) = make(), make()
    torch.testing.assert_close(x, y, rtol=0, atol=0)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_a_function_in_a_module_is_found(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    model, _ = load_subject("script_of_a_user:perceptron")()
    assert len(model) == 4
    assert sys.path == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("perceptron", "names no function"),
        ("missing.py:f", "no file missing.py"),
        ("no_such_module_anywhere:f", "no module no_such_module_anywhere"),
        ("torch:no_such_function", "no function 'no_such_function'"),
    ],
)
def test_what_is_not_there_is_named_with_the_form(words, said):
    with pytest.raises(ConfigurationError, match=said) as error:
        load_subject(words)
    assert "FILE.py:NAME" in str(error.value)


def test_what_is_no_function_or_gives_no_pair_is_refused(script):
    with pytest.raises(ConfigurationError, match="'number'"):
        load_subject(f"{script}:number")
    with pytest.raises(ConfigurationError, match="returned Linear"):
        load_subject(f"{script}:model_alone")()


def test_a_module_whose_own_import_fails_is_not_called_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half_a_script.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(ModuleNotFoundError):
        load_subject("half_a_script:f")


def test_a_plan_is_printed_and_moves_nothing(run, run_json, script):
    words = ("plan", f"{script}:perceptron", "--virtual", "2x16MiB", "--micro-batches", "3")
    code, out, _ = run(*words)
    assert code == 0
    assert "card" in out
    code, body = run_json(*words)
    assert (code, body["schema"], body["feasible"], body["micro_batches"]) == (0, 1, True, 3)
    assert sorted(layer for card in body["cards"] for layer in card["layers"]) == ["0", "1", "2", "3"]


def test_a_plan_for_a_recorded_box(run_json, script):
    code, body = run_json("plan", f"{script}:perceptron", "--box", "2x-rtx3090-nvlink", "--optimizer", "sgd")
    assert (code, body["optimizer"]) == (0, "sgd")
    assert all(card["capacity_bytes"] > 20e9 for card in body["cards"])


def test_a_model_that_does_not_fit_ends_with_code_2_and_a_reason(run_json, script):
    code, body = run_json("plan", f"{script}:large", "--virtual", "2x8MiB", "--spill", "never")
    assert (code, body["feasible"]) == (2, False)
    assert body["reason"]


def test_a_model_is_verified(run, run_json, script):
    words = ("verify", f"{script}:perceptron", "--virtual", "2x16MiB", "--micro-batches", "2")
    code, out, _ = run(*words)
    assert code == 0
    assert "0 out of tolerance" in out
    code, body = run_json(*words)
    assert (code, body["schema"], body["ok"]) == (0, 1, True)
    assert {item["kind"] for item in body["comparisons"]} == {"output", "gradient"}
    assert body["plan"]["micro_batches"] == 2


def test_a_model_that_cannot_be_split_is_verified_whole(run_json, script):
    with pytest.warns(UserWarning, match="BatchNorm|batch"):
        code, body = run_json("verify", f"{script}:batch_norm", "--virtual", "2x16MiB", "--micro-batches", "2")
    assert (code, body["ok"], body["plan"]["micro_batches"]) == (0, True, 1)


def test_a_difference_ends_with_code_1(run, script, monkeypatch):
    import poolrt.api as api

    real = api.shard

    def wrong(model, **options):
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return real(model, **options)

    monkeypatch.setattr(api, "shard", wrong)
    code, out, _ = run("verify", f"{script}:perceptron", "--virtual", "2x16MiB")
    assert code == 1
    assert "largest difference" in out


@pytest.mark.parametrize("command", ["plan", "verify"])
def test_a_missing_script_ends_in_a_sentence(run, command):
    code, out, err = run(command, "missing.py:f")
    assert (code, out) == (2, "")
    assert err.startswith(f"poolrt {command}: there is no file missing.py")
