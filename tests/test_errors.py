from nnunet_autosam2.errors import listed


def test_long_lists_are_cut():
    assert listed([1, 2, 3, 4, 5]) == "1, 2, 3, 4, 5"
    assert listed(["a"] * 8) == "a, a, a, a, a and 3 more"
