import pytest

from poolrt.topology.pasted.read import read_pasted

TABLE = """\
user@box:~$ nvidia-smi
Thu Mar  7 12:00:00 2024
+---------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.54.14              Driver Version: 550.54.14      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |
|                                         |                        |               MIG M. |
|=========================================+========================+======================|
|   0  NVIDIA GeForce RTX 3090        Off |   00000000:01:00.0  On |                  N/A |
| 30%   45C    P8             25W /  350W |     500MiB /  24576MiB |      0%      Default |
|                                         |                        |                  N/A |
+-----------------------------------------+------------------------+----------------------+
|   1  NVIDIA A100 80GB PCIe          Off |   00000000:42:00.0 Off |                    0 |
| N/A   32C    P0             69W /  300W |       4MiB /  81920MiB |      0%      Default |
|                                         |                        |              Enabled |
+-----------------------------------------+------------------------+----------------------+

+-----------------------------------------------------------------------------------------+
| Processes:                                                                              |
|  GPU   GI   CI        PID   Type   Process name                              GPU Memory |
|=========================================================================================|
|    0   N/A  N/A      1234      G   /usr/lib/xorg/Xorg                              4MiB |
+-----------------------------------------------------------------------------------------+
"""


def machine_of(text):
    return read_pasted(text).machine


def test_the_plain_table():
    reading = read_pasted(TABLE)
    first, second = reading.machine.cards
    assert (first.name, first.bus_id, first.memory_bytes) == ("NVIDIA GeForce RTX 3090", "0000:01:00.0", 24576 << 20)
    assert (second.name, second.memory_bytes, first.mig, second.mig) == (
        "NVIDIA A100 80GB PCIe",
        81920 << 20,
        None,
        True,
    )
    assert (reading.machine.driver.version, reading.machine.driver.cuda_version) == ("550.54.14", (12, 4))
    assert [remark.text for remark in reading.remarks] == ["Thu Mar  7 12:00:00 2024"]


def test_a_name_cut_by_the_table_is_taken_from_the_list():
    cut = TABLE.replace("NVIDIA GeForce RTX 3090     ", "NVIDIA GeForce RTX 30...    ")
    listed = "GPU 0: NVIDIA GeForce RTX 3090 (UUID: GPU-aaaa)\n"
    for text in (cut + listed, listed + cut):
        assert machine_of(text).cards[0].name == "NVIDIA GeForce RTX 3090"
        assert machine_of(text).cards[0].uuid == "GPU-aaaa"


def test_slices_of_the_list():
    text = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)\n  MIG 1g.5gb      Device  0: (UUID: MIG-bb)\nGPU 1: NVIDIA A30"
    first, second = machine_of(text).cards
    assert (first.mig, second.mig, second.name) == (True, None, "NVIDIA A30")


@pytest.mark.parametrize("letters", ["r", "w", "rw", "n", "a", "p"])
def test_a_peer_matrix_is_about_what_its_command_says(letters):
    names = {"r": "read", "w": "write", "n": "nvlink", "a": "atomics", "p": "pcie"}
    text = f"# nvidia-smi topo -p2p {letters}\n \tGPU0\tGPU1\n GPU0\tX\tOK\n GPU1\tTNS\tX\n"
    machine = machine_of(text)
    assert machine.pair(0, 1).peer_status == {names[letter]: "OK" for letter in letters}
    assert machine.pair(1, 0).peer_status == {names[letter]: "TNS" for letter in letters}


def test_a_peer_matrix_without_its_command_counts_as_read():
    assert machine_of("\tGPU0\tGPU1\nGPU0\tX\tCNS\n").pair(0, 1).peer_access is False


def test_a_row_that_is_missing_is_known_from_the_others():
    machine = machine_of("\tGPU0\tGPU1\tGPU2\tCPU Affinity\nGPU0\t X \tNV4\tPHB\t0-7\n")
    assert [card.index for card in machine.cards] == [0, 1, 2]
    assert machine.pair(1, 0).relation == "NV4"
    assert machine.pair(1, 2).relation is None


def test_cards_may_be_listed_partly():
    machine = machine_of("\tGPU1\tGPU3\nGPU1\tX\tPIX\nGPU3\tPIX\tX\n")
    assert [card.index for card in machine.cards] == [1, 3]


def test_names_of_old_drivers():
    machine = machine_of("\tGPU0\tGPU1\tGPU2\nGPU0\tX\tSOC\tPSB\n")
    assert (machine.pair(0, 1).relation, machine.pair(0, 2).relation) == ("SYS", "PIX")


def test_what_is_up_counts_before_what_was_set_up():
    """`topo -m` may print NV4 with a dead link; `nvlink -s` shows three."""
    links = "".join(f"\t Link {n}: {'<inactive>' if n == 2 else '14.062 GB/s'}\n" for n in range(4))
    text = f"\tGPU0\tGPU1\nGPU0\tX\tNV4\nGPU1\tNV4\tX\nGPU 0: A\n{links}GPU 1: B\n{links}"
    assert machine_of(text).pair(0, 1).nvlinks == 3


def test_far_ends_that_all_cards_share_are_switches():
    ends = "".join(f"\t Link {n}: Remote Device 00000000:{0xC0 + n % 6:02X}:00.0: Link {n}\n" for n in range(12))
    machine = machine_of("".join(f"GPU {n}: NVIDIA A100-SXM4-40GB\n{ends}" for n in range(4)))
    assert {pair.nvlinks for pair in machine.pairs} == {12}
    assert len(machine.pairs) == 12
    assert {port.remote for card in machine.cards for port in card.nvlinks} == {"SWITCH"}


def test_the_three_answers_about_links():
    text = (
        "GPU 0: NVIDIA RTX A4000 (UUID: GPU-a)\nDevice does not have or support Nvlink\n"
        "GPU 1: Quadro RTX 6000 (UUID: GPU-b)\nNVML: Unable to retrieve Nvlink information as all links are inActive\n"
        "GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-c)\n\t Link 0: 25 GB/s\n\t Link 1: <inactive>\nGPU 3: NVIDIA L4\n"
    )
    reading = read_pasted(text)
    assert reading.remarks == ()
    assert [card.active_links for card in reading.machine.cards] == [0, 0, 1, None]


def test_far_ends_in_the_short_form():
    text = "".join(
        f"GPU {n}: A\n\tLink 0: 00000000:{2 - n}1:00.0\n\tLink 1: 00000000:{2 - n}1:00.0\n" for n in range(2)
    )
    assert machine_of(text).pair(0, 1).nvlinks == 2


def test_a_command_about_one_card_names_it():
    reading = read_pasted(
        "$ nvidia-smi nvlink --status -i 3\nNVML: Unable to retrieve NVLink information as all links are inActive"
    )
    assert reading.remarks == ()
    assert [(card.index, card.nvlinks) for card in reading.machine.cards] == [(3, ())]


def test_colours_prompts_comments_and_fences_do_not_disturb():
    text = (
        "```\n\x1b]0;title\x07\x1b[1m(base) me@box:~$ nvidia-smi topo -m\x1b[0m\r\n"
        "\t\x1b[4mGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\x1b[0m\r\n# mine\n"
        "\x1b[32mGPU0\x1b[0m\t X \tPXB\t0-7\t0\nGPU1\tPXB\t X \t8-15\t1\n```\n"
    )
    reading = read_pasted(text)
    assert reading.remarks == ()
    assert reading.machine.pair(0, 1).relation == "PXB"
    assert [card.numa_node for card in reading.machine.cards] == [0, 1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hello", "not understood"),
        ("GPU0\t X \tNV4", "a row of a matrix whose header is missing"),
        ("\t Link 0: 14.062 GB/s", "no card is named above this line; taken as card 0"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_line(line, reason):
    (remark,) = read_pasted(f"\n\n{line}\n").remarks
    assert (remark.number, remark.reason) == (3, reason)
    assert str(remark).startswith("line 3: ")


def test_a_row_that_ends_early_is_used_as_far_as_it_goes():
    reading = read_pasted("\tGPU0\tGPU1\tGPU2\nGPU0\t X \tNV4\n")
    assert reading.machine.pair(0, 1).relation == "NV4"
    assert [remark.number for remark in reading.remarks] == [2]


def test_a_header_that_ends_early_leaves_columns_unread():
    reading = read_pasted("\tGPU0\tGPU1\nGPU0\t X \tNV4\tSYS\n")
    assert [remark.number for remark in reading.remarks] == [2]


def test_text_about_nothing_is_an_empty_machine():
    assert machine_of("") == machine_of("\n# nothing\n")
    assert machine_of("").cards == ()
