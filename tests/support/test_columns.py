from nnunet_autosam2.support.columns import aligned


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [["case", "Dice"], ["a", "0.5"], ["longer name", "0.125"]]
    assert aligned(rows).split("\n") == [
        "case         Dice",
        "a            0.5",
        "longer name  0.125",
    ]


def test_numbers_are_flush_right_and_their_names_are_not():
    rows = [["case", "HD95"], ["a", "12.5"], ["longer name", "3"]]
    assert aligned(rows, numbers=True).split("\n") == [
        "case         HD95",
        "a            12.5",
        "longer name     3",
    ]


def test_an_empty_cell_leaves_no_space_at_the_end():
    assert aligned([["a", "b"], ["1", ""]]) == "a  b\n1"


def test_a_header_alone_and_nothing_at_all():
    assert aligned([["name", "size"]]) == "name  size"
    assert aligned([]) == ""


def test_a_cell_stays_in_its_row():
    assert aligned([["name"], ["two\nlines\x1b[2K"]]).split("\n") == ["name", r"two\nlines\x1b[2K"]
