"""Rows that are read when they are looked at, against the same rows in memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toptune.errors import InputError
from toptune.evaluation.evaluate import Evaluation, Units, evaluate, shuffles
from toptune.heads import streaming
from toptune.heads.catalogue import head_of
from toptune.heads.falkon.classifier import FalkonClassifier
from toptune.heads.mlp.classifier import MLPClassifier
from toptune.heads.rows import group_rows
from toptune.heads.streaming import (
    Block,
    BlockRows,
    Features,
    StreamedRows,
    below_each_other,
    in_one_block,
    is_streamed,
    side_by_side,
    take_rows,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Streamed:
    """A matrix in blocks of some sizes; counts how often each is read."""

    def __init__(self, values: NDArray[np.float32], sizes: list[int]) -> None:
        self.reads: Counter[int] = Counter()
        stops = np.cumsum(sizes)
        assert stops[-1] == len(values)
        parts = [
            in_one_block(Block(size, self._reader(n, values[stop - size : stop])), values.shape[1])
            for n, (size, stop) in enumerate(zip(sizes, stops, strict=True))
        ]
        self.rows = below_each_other(parts)

    def _reader(self, number: int, part: NDArray[np.float32]) -> Any:
        def read() -> NDArray[np.float32]:
            self.reads[number] += 1
            return part.copy()

        return read


def streamed(values: NDArray[np.float32], block: int = 7) -> Features:
    n = len(values)
    return Streamed(values, [min(block, n - start) for start in range(0, n, block)]).rows


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    data=st.data(),
    kept=st.sampled_from([0, 40, 2**20]),
)
def test_any_rows_are_those_of_the_matrix(sizes: list[int], data: Any, kept: int) -> None:
    n = sum(sizes)
    values = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_KEPT_BYTES", kept)
        rows = Streamed(values, sizes).rows
        assert (len(rows), rows.shape, rows.nbytes) == (n, (n, 3), 12 * n)
        assert rows.dtype == np.float32
        chosen = np.array(data.draw(st.lists(st.integers(-n, n - 1), max_size=12)), np.int64)
        a, b = (data.draw(st.integers(-n - 1, n + 1)) for _ in "ab")
        step = data.draw(st.sampled_from([None, 1, 2, -1]))
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        for which in (chosen, slice(a, b, step), mask):
            np.testing.assert_array_equal(rows[which], values[which])
        np.testing.assert_array_equal(np.asarray(rows), values)
        some = take_rows(rows, chosen)
        np.testing.assert_array_equal(some[::-1], values[chosen][::-1])
        beside = side_by_side([rows, values[:, :1], rows])
        assert is_streamed(beside)
        expected = np.concatenate([values, values[:, :1], values], axis=1)
        np.testing.assert_array_equal(take_rows(beside, chosen)[:], expected[chosen])


def test_a_block_is_read_once_while_rows_are_asked_for_in_order() -> None:
    values = np.arange(60, dtype=np.float32).reshape(20, 3)
    made = Streamed(values, [5] * 4)
    for start in range(0, 20, 2):
        made.rows[start : start + 2]
    assert made.reads == dict.fromkeys(range(4), 1)


@pytest.mark.parametrize("row", [4, -5])
def test_rows_that_are_not_there_are_an_error(row: int) -> None:
    rows = streamed(np.zeros((4, 2), np.float32))
    with pytest.raises(IndexError, match="there are 4 rows"):
        rows[np.array([0, row])]
    with pytest.raises(IndexError, match="there are 4 rows"):
        take_rows(rows, np.array([row]))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two blocks of 60 bytes fit; a third takes the place of the one that was read longest ago.
    monkeypatch.setattr(streaming, "_KEPT_BYTES", 130)
    made = Streamed(np.zeros((15, 3), np.float32), [5] * 3)
    for row in (0, 5, 0, 10, 0, 5):
        made.rows[row : row + 1]
    assert made.reads == {0: 1, 1: 2, 2: 1}


def test_a_block_that_is_not_as_was_said_is_an_error() -> None:
    rows = BlockRows([Block(3, lambda: np.zeros((2, 4), np.float32))], 4)
    with pytest.raises(ValueError, match=r"is \(2, 4\), not \(3, 4\)"):
        rows[:1]


def test_rows_in_memory_stay_there() -> None:
    values = np.ones((4, 2), np.float32)
    assert type(below_each_other([values, values])) is np.ndarray
    assert type(side_by_side([values, values])) is np.ndarray
    assert type(take_rows(values, np.array([1]))) is np.ndarray


# --- Falkon


def a_set(n_groups: int = 6, n: int = 60, d: int = 9) -> tuple[NDArray[np.float32], Any, Any]:
    rng = np.random.default_rng(2)
    groups = np.sort(rng.integers(0, n_groups, n))
    y = groups % 2
    X = (rng.random((n, d)) + 0.4 * y[:, None] * rng.random(d)).astype(np.float32)
    # Rows of groups do not lie together.
    order = rng.permutation(n)
    return X[order], y[order], groups[order]


SOLVERS = pytest.mark.parametrize("solver", ["direct", "iterative"])
VIEWS: Any = {"view_sizes": (4, 5), "view_weights": (0.25, 0.75)}


@SOLVERS
@pytest.mark.parametrize("views", [{}, VIEWS])
@pytest.mark.parametrize("keep", [True, False])
def test_falkon_learns_the_same_from_streamed_rows(
    solver: str, views: dict[str, Any], keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not keep:
        monkeypatch.setattr("toptune.heads.falkon.arrays.Arrays.kept_bytes", lambda _: 0)
    X, y, groups = a_set()
    made = FalkonClassifier(n_centres=20, solver=solver, penalty=1e-3, **views)
    fitted = made.fit(X, y).to_tensors()
    for name, values in made.fit(streamed(X), y).to_tensors().items():
        np.testing.assert_array_equal(values, fitted[name])
    np.testing.assert_array_equal(made.class_scores(streamed(X)), made.class_scores(X))
    with pytest.raises(ValueError, match="9 features, got 18"):
        made.class_scores(side_by_side([streamed(X), streamed(X)]))
    grouping = group_rows(groups)
    found, expected = (made.held_out(rows, y, grouping) for rows in (streamed(X), X))
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("centres", [20, None])
def test_tuning_and_shuffles_are_the_same_on_streamed_rows(centres: int | None) -> None:
    X, y, groups = a_set()
    head = head_of("falkon")
    units = Units.of(groups.astype(str), y.astype(str))
    estimator = head.make({"n_centres": centres})
    candidates = [{"width": 0.5, "penalty": 1e-4}, {"width": 1.0, "penalty": 1e-2}]
    found, expected = (
        evaluate(head, estimator, rows, y.astype(str), groups.astype(str), units, candidates)
        for rows in (streamed(X), X)
    )
    assert found.nested is not None
    assert expected.nested is not None
    np.testing.assert_array_equal(found.nested.loss, expected.nested.loss)
    np.testing.assert_array_equal(found.folds.probabilities, expected.folds.probabilities)


def test_all_rows_are_never_in_memory_with_nystrom_centres(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "_KEPT_BYTES", 0)
    most: list[int] = []
    real = StreamedRows.__getitem__

    def counted(self: StreamedRows, rows: Any) -> NDArray[np.float32]:
        found = real(self, rows)
        most.append(len(found))
        return found

    monkeypatch.setattr(StreamedRows, "__getitem__", counted)
    monkeypatch.setattr("toptune.heads.falkon.arrays.Arrays.block_rows", 16)
    X, y, groups = a_set(n=200)
    FalkonClassifier(n_centres=20).fit(streamed(X), y)
    FalkonClassifier(n_centres=20).held_out(streamed(X), y, group_rows(groups))
    assert max(most) == 20


def test_what_needs_all_rows_refuses_streamed_ones_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, _ = a_set()
    with pytest.raises(InputError, match="MLPClassifier needs all its rows in memory"):
        MLPClassifier().fit(streamed(X), y)
    monkeypatch.setattr("toptune.heads.falkon.classifier.solver_of", lambda _: None)
    library = FalkonClassifier(n_centres=20, solver="falkon")
    with pytest.raises(InputError, match="the solver 'falkon' needs all rows in memory"):
        library.fit(streamed(X), y)


def test_shuffles_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, groups = a_set()
    head, names = head_of("falkon"), groups.astype(str)
    units = Units.of(names, y.astype(str))
    shuffled = shuffles(units, 5, 0)
    free = 8 * 4 * len(X) * len(units.device)
    made, labels = head.make({"n_centres": 20}), y.astype(str)

    def run() -> Evaluation:
        return evaluate(head, made, streamed(X), labels, names, units, [{}], shuffled)

    monkeypatch.setattr("toptune.heads.falkon.arrays.Arrays.free_bytes", lambda _: free)
    assert run().test is not None
    monkeypatch.setattr("toptune.heads.falkon.arrays.Arrays.free_bytes", lambda _: free - 1)
    with pytest.raises(InputError, match=r"permutations of 6 devices.*`permutations=0`"):
        run()


def test_labels_of_another_length_are_refused() -> None:
    X, y, _ = a_set()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        FalkonClassifier(n_centres=20).fit(streamed(X), y[:-1])
