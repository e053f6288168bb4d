"""Recorded texts as a clipboard, a chat or a terminal leaves them: no line may end in a traceback."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.topology.assemble import assemble
from poolrt.topology.doctor.examine import examine
from poolrt.topology.pasted.read import read_pasted

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.txt"))
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in RECORDED}
HARMLESS = ["# a comment", "", "$ ls -la && nvidia-smi", "me@box:~# nvidia-smi topo -m", "Legend:", "  X    = Self"]
NOISE = [
    *HARMLESS,
    "ok, next one",
    "GPU",
    "GPU0",
    "GPU0\tGPU",
    "Link : x",
    "GPU 99999: x",
    "\x1b[",
    "|",
    "| 0 |",
    "NV12",
]


def understood(text):
    """Everything that is done with a text ends well."""
    reading = read_pasted(text)
    assemble(reading.machine, "recorded", lambda position: f"vcard:{position}")
    examine(reading.machine)
    assert [remark.number for remark in reading.remarks] == sorted(remark.number for remark in reading.remarks)
    return reading


@st.composite
def mangled(draw):
    lines = draw(st.sampled_from(sorted(TEXTS.values()))).splitlines()
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        kind = draw(st.sampled_from(["cut", "colour", "blanks", "insert", "drop", "twice", "swap", "any"]))
        cut = draw(st.integers(0, len(line)))
        if kind == "cut":
            lines[at] = line[:cut]
        elif kind == "colour":
            lines[at] = f"{line[:cut]}\x1b[{draw(st.integers(0, 107))}m{line[cut:]}\x1b[0m"
        elif kind == "blanks":
            lines[at] = line + draw(st.sampled_from([" ", "\t", "   \t ", "\r", "\u00a0"]))
        elif kind == "insert":
            lines.insert(at, draw(st.sampled_from(NOISE)))
        elif kind == "drop" and len(lines) > 1:
            del lines[at]
        elif kind == "twice":
            lines.insert(at, line)
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], line
        else:
            lines[at] = line[:cut] + draw(st.text(max_size=4)) + line[cut:]
    return "\n".join(lines)


@settings(max_examples=150)
@given(mangled())
def test_no_mangled_text_ends_in_a_traceback(text):
    understood(text)


@settings(max_examples=60)
@given(st.text(st.sampled_from(list("GPULinkNVXSYHB 0123456789:|<>/.\t\n\x1b[m-,")), max_size=200))
def test_no_text_at_all_ends_in_a_traceback(text):
    understood(text)


@pytest.mark.parametrize("name", TEXTS)
@settings(max_examples=3)
@given(data=st.data())
def test_harmless_lines_colours_and_blanks_change_nothing(name, data):
    plain = read_pasted(TEXTS[name])
    lines = []
    for line in TEXTS[name].splitlines():
        if data.draw(st.integers(0, 9)) == 0:
            lines.append(data.draw(st.sampled_from(["# a comment", "", "  X    = Self", "\x1b[0m"])))
        colour = data.draw(st.sampled_from(["", "\x1b[1m", "\x1b[38;5;4m"]))
        lines.append(f"{colour}{line}{colour and chr(27) + '[0m'}{data.draw(st.sampled_from(['', '  ', chr(13)]))}")
    assert read_pasted("\n".join(lines)).machine == plain.machine
