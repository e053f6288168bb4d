from poolrt.topology.pasted.far_ends import addresses_in_order, behind_switches, links_by_pair

NOTHING = dict.fromkeys(range(4))


def test_sorted_addresses_are_the_cards_in_order():
    """Cards 0 and 2 are bridged, and 1 and 3: the text says only what each of them sees."""
    far_ends = {0: ["c:00"] * 4, 1: ["d:00"] * 4, 2: ["a:00"] * 4, 3: ["b:00"] * 3}
    assert addresses_in_order(far_ends) == {"a:00": 0, "b:00": 1, "c:00": 2, "d:00": 3}
    assert links_by_pair(far_ends, NOTHING) == {(0, 2): 4, (2, 0): 4, (1, 3): 4, (3, 1): 3}


def test_addresses_that_are_known_count_before():
    far_ends = {0: ["c:00"] * 2, 1: []}
    assert links_by_pair(far_ends, {0: "a:00", 1: "c:00"}) == {(0, 1): 2}


def test_what_all_cards_see_is_a_switch():
    far_ends = {card: ["s:00", "t:00", "t:00"] for card in range(3)} | {3: []}
    assert behind_switches(far_ends)
    assert links_by_pair(far_ends, NOTHING) == {(a, b): 3 for a in range(3) for b in range(3) if a != b}


def test_what_does_not_fit_is_not_guessed():
    assert links_by_pair({0: ["a:00"], 1: ["b:00"]}, NOTHING) == {}  # each would be its own far end
    assert links_by_pair({0: ["x:00", "y:00"], 1: ["z:00"]}, NOTHING) == {}
    assert links_by_pair({}, {}) == {}
