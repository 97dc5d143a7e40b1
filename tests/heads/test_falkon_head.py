"""How many rows serve as centres, from made-up amounts of memory."""

from __future__ import annotations

from toptune.heads.falkon.head import all_rows_limit, plan_centres

GIB = 2**30


def test_all_rows_are_centres_while_two_such_matrices_fit_half_the_memory() -> None:
    for gib in (1, 2, 4):
        n = all_rows_limit(gib * GIB)
        assert 2 * 8 * n**2 <= gib * GIB / 2 < 2 * 8 * (n + 1) ** 2
    assert all_rows_limit(1024 * GIB) == 15_000
    assert all_rows_limit(8 * GIB, n_matrices=8) == all_rows_limit(2 * GIB)


def test_the_plan_says_why() -> None:
    assert plan_centres(15_000, 64 * GIB).n_centres is None
    too_long = plan_centres(15_001, 64 * GIB)
    assert too_long == (
        4000,
        "4000 of 15001 windows are Nystrom centres: more than 15000 take too long",
    )
    too_large = plan_centres(12_000, 2 * GIB)
    assert too_large.n_centres == 4000
    assert "2.0 GiB of memory are at hand, enough for 8192 as centres" in too_large.reason
    assert plan_centres(300, 10**6).n_centres == 300


def test_the_plan_is_the_same_however_much_memory_is_free_beyond_what_all_rows_need() -> None:
    assert plan_centres(16, GIB) == plan_centres(16, 3 * GIB) == plan_centres(16, 64 * GIB)
