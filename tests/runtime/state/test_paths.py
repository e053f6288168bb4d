"""Names within names."""

from __future__ import annotations

from poolrt.runtime.state.paths import contains, joined


def test_the_root_has_no_name():
    assert joined("", "layer") == "layer"
    assert joined("layer", "weight") == "layer.weight"
    assert joined("", 0) == "0"
    assert joined("args", 0) == "args.0"


def test_a_module_contains_itself_and_what_is_in_it():
    assert contains("layer.1", "layer.1")
    assert contains("layer.1", "layer.1.weight")
    assert not contains("layer.1", "layer.10"), "a longer name is another module's"
    assert not contains("layer.1", "layer")
    assert contains("", "layer")
