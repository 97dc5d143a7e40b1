"""The penalty of the logistic regression chosen inside every fold, and its permutation test.

Missing values are filled in, columns standardised and models fitted by the training rows of a fold
only; inside an outer fold, by its training rows without one more group. Leaving out groups g and h
serves both as fold h inside fold g and the other way round. Standardising does not depend on
labels, so shuffles share it.

Many small regressions are compiled: one a class, labelling and penalty. Each is what
`LogisticClassifier` fits for that labelling and that penalty, the minimum of ``C x sum of
log-losses + |w|^2 / 2``, by Newton's method, started where the next stronger penalty ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from toptune.errors import ToptuneError
from toptune.heads.base import Candidate, Progress
from toptune.heads.nested import (
    FoldScores,
    NestedScores,
    Shuffled,
    check_tuning,
    choose,
    folds_and_pairs,
    labelling_losses,
    spread_rows,
    unit_weights,
)
from toptune.heads.parameters.logistic import LogisticClassifier
from toptune.heads.parameters.standardiser import Standardiser
from toptune.heads.rows import Float64, Grouping, Ints, LabelledRows
from toptune.machine.threads import compiled, in_threads, thread_pool

# What the inner scores of the labellings that are done together may take.
_INNER_BYTES = 2**27
# Few enough that progress is seen to move.
_MOST_TOGETHER = 16


def tune_logistic(
    classifier: LogisticClassifier,
    rows: LabelledRows,
    candidates: Sequence[Candidate],
    *,
    shuffled: Ints | None = None,
    progress: Progress | None = None,
) -> tuple[NestedScores, Shuffled]:
    """Leave each group out once, with the penalty chosen among the other groups.

    Where leaving out two groups leaves no row of a class, its log-odds are those of half a row
    against all others, whatever the row and the penalty.

    Takes and gives what `Head.nested` does. Of equally good values of C the smallest is chosen; one
    candidate may name none: nothing is tuned then, inner folds serve calibration. `progress` is
    told how many labellings are done, and of how many. Raises `InputError`: fewer than three
    groups, no candidate, or one that the classifier cannot take.
    """
    X, y, grouping, unit = rows
    check_tuning(len(grouping.groups), candidates)
    classifiers = [clone(classifier).set_params(**candidate) for candidate in candidates]
    for each in classifiers:
        checked, classes, codes = each.check(X, y)
    _, labels = rows.labellings(shuffled)
    search = _Search(
        checked, len(classes), grouping, unit, np.array([float(each.C) for each in classifiers])
    )
    parts, nested = [], None
    for block in _blocks(len(labels), search.inner_bytes):
        found = search.scores(labels[block], inner=len(classifiers) > 1 or block.start == 0)
        loss = search.losses(found, labels[block])
        if nested is None:
            nested = search.nested(found, loss[0], codes)
        parts.append(search.verdicts(found, loss))
        if progress is not None:
            progress("labellings", block.stop, len(labels))
    assert nested is not None  # the observed labels come first
    return nested, Shuffled(*(np.concatenate(lines) for lines in zip(*parts, strict=True)))


def _blocks(n: int, inner_bytes: int) -> Iterator[slice]:
    """Give the observed labelling alone, then some shuffles at a time."""
    yield slice(0, 1)
    size = min(_MOST_TOGETHER, max(1, _INNER_BYTES // inner_bytes))
    for start in range(1, n, size):
        yield slice(start, min(start + size, n))


class _Search:
    """Fits, losses and choices of any labellings of the same rows."""

    def __init__(
        self, X: NDArray[Any], n_classes: int, grouping: Grouping, unit: Ints, C: Float64
    ) -> None:
        self._X, self._k, self._grouping, self._unit = X, n_classes, grouping, unit
        # Weaker penalties start where stronger ones ended, and are chosen after them.
        self._by_C = np.argsort(C, kind="stable")
        self._C = C[self._by_C]
        self._judged = spread_rows(unit)

    @property
    def inner_bytes(self) -> int:
        """Memory of one labelling's inner scores."""
        return 4 * len(self._C) * len(self._grouping.groups) * len(self._X) * self._k

    def scores(self, labels: Ints, *, inner: bool) -> FoldScores:
        """Train all folds under some labellings, (r, u); the inner ones only where asked for.

        The scores are (r, p, n, k), and (r, p, g, n, k) of the inner folds.
        """
        grouping = self._grouping
        n_groups, (n, r) = len(grouping.groups), (len(self._X), len(labels))
        codes = labels[:, self._unit]
        outer = np.empty((r, len(self._C), n, self._k))
        within = np.full((r, len(self._C), n_groups if inner else 0, n, self._k), np.nan, "f4")
        left_out = folds_and_pairs(n_groups)[: None if inner else n_groups]

        def fold(groups: tuple[int, ...]) -> None:
            held_out = np.isin(grouping.codes, groups)
            standard = Standardiser.of(self._X[~held_out])
            rows = np.flatnonzero(held_out)
            found = log_odds(
                standard.apply(self._X[~held_out]),
                codes[:, ~held_out],
                self._k,
                self._C,
                standard.apply(self._X[rows]),
            )
            if len(groups) == 1:
                outer[:, :, rows] = found
                return
            for g, h in (groups, groups[::-1]):
                of_h = grouping.codes[rows] == h
                within[:, :, g, rows[of_h]] = found[:, :, of_h]

        with thread_pool() as pool:
            in_threads(pool, fold, left_out)
        return FoldScores(outer, within)

    def losses(self, found: FoldScores, labels: Ints) -> Float64:
        """Loss of every candidate over the inner folds of each outer fold, (r, p, g)."""
        n_groups = len(self._grouping.groups)
        losses = np.zeros((len(labels), len(self._C), n_groups))
        if not found.inner.shape[2]:
            return losses
        for group in range(n_groups):
            rows = self._judged[self._grouping.codes[self._judged] != group]
            unit = self._unit[rows]
            for p in range(len(self._C)):
                logits = np.moveaxis(found.inner[:, p, group, rows].astype(np.float64), 2, 0)
                logits = np.ascontiguousarray(logits.transpose(0, 2, 1))
                losses[:, p, group] = labelling_losses(
                    logits, labels[:, unit].T, unit_weights(unit)
                )
        return losses

    def nested(self, found: FoldScores, loss: Float64, codes: Ints) -> NestedScores:
        """Put together what is said of the observed labels; candidates as they were given."""
        observed = FoldScores(found.outer[0], found.inner[0])
        chosen = choose(observed, codes, self._unit, self._grouping, loss)
        given = np.argsort(self._by_C)
        return replace(
            chosen,
            loss=loss[given],
            final_loss=chosen.final_loss[given],
            choice=self._by_C[chosen.choice],
            final_choice=int(self._by_C[chosen.final_choice]),
        )

    def verdicts(self, found: FoldScores, loss: Float64) -> Shuffled:
        """Tell what the chosen models say of held-out rows and units, labelling by labelling."""
        r, n = len(loss), len(self._X)
        choice = loss.argmin(axis=1)
        chosen = choice[:, self._grouping.codes]
        scores = found.outer[np.arange(r)[:, None], chosen, np.arange(n)]
        sizes = np.bincount(self._unit)
        averaging = np.eye(len(sizes))[:, self._unit] / sizes[:, None]
        return Shuffled(
            scores.argmax(axis=2).astype(np.int16), (averaging @ scores).astype(np.float32)
        )


# --- compiled regressions

# Newton's decrement, relative to the number of rows, at which w is the minimum within rounding:
# steps converge quadratically, so the error is far below it.
_DECREMENT = 1e-8
_MAX_STEPS = 200
_HALVINGS = 40
# Share of the decrease that the slope promises and a step must bring (Armijo's rule).
_ARMIJO = 1e-4
# Log-odds of a class that no training row has, or all have: rows it could be learnt from are left
# out. Half a row of the other kind stands for them.
_MISSING_ROW = 0.5


def log_odds(train: Float64, codes: Ints, n_classes: int, C: Float64, rows: Float64) -> Float64:
    """Train on some rows, (m, d), and score others, (t, d), standardised likewise: (r, p, t, k).

    `codes`, (r, m): class of each training row in each labelling. `C`, (p,): inverse penalties,
    ascending. Raises `ToptuneError`: Newton's method did not end; never seen, since the loss is
    strictly convex.
    """
    scores = np.empty((len(codes), len(C), len(rows), n_classes))
    train, rows = np.ascontiguousarray(train), np.ascontiguousarray(rows)
    codes = np.ascontiguousarray(codes)
    if not _all_log_odds(train, codes, C, rows, scores):
        raise ToptuneError("a logistic regression did not converge: lower C")
    return scores


@compiled()
def _all_log_odds(train: Float64, codes: Ints, C: Float64, rows: Float64, scores: Float64) -> bool:
    n, d = train.shape
    # A line a column: sums over rows then run along memory.
    Z = np.ones((d + 1, n))
    Z[1:] = train.T
    w, y = np.empty(d + 1), np.empty(n)
    for r in range(len(codes)):
        for k in range(scores.shape[3]):
            n_own = 0
            for i in range(n):
                y[i] = codes[r, i] == k
                n_own += codes[r, i] == k
            w[:] = 0.0
            w[0] = np.log((n_own + _MISSING_ROW) / (n - n_own + _MISSING_ROW))
            for p in range(len(C)):
                if 0 < n_own < n and not _newton(Z, y, 1 / C[p], w):
                    return False
                for t in range(len(rows)):
                    score = w[0]
                    for a in range(d):
                        score += w[a + 1] * rows[t, a]
                    scores[r, p, t, k] = score
    return True


@compiled()
def _newton(Z: Float64, y: Float64, ridge: float, w: Float64) -> bool:
    """Minimise sum of log-losses + ridge / 2 x |w[1:]|^2 from w on, in place."""
    d, n = Z.shape
    gradient, H, step, weighted = np.empty(d), np.empty((d, d)), np.empty(d), np.empty((d, n))
    value = _loss(Z, y, ridge, w)
    for _ in range(_MAX_STEPS):
        _derivatives(Z, y, ridge, w, gradient, H, weighted)
        if not _factor(H):
            return False
        _solve(H, gradient, step)
        decrement = (step * gradient).sum()
        if decrement <= _DECREMENT * n:
            w -= step
            return True
        # A whole step may leave the region where the loss is nearly a parabola.
        for _halving in range(_HALVINGS):
            new = _loss(Z, y, ridge, w - step)
            if new <= value - _ARMIJO * decrement:
                break
            step /= 2
            decrement /= 2
        w -= step
        value = new
    return False


@compiled(fastmath={"reassoc", "contract"})
def _linear(Z: Float64, w: Float64) -> Float64:
    f = np.zeros(Z.shape[1])
    for a in range(len(w)):
        for i in range(len(f)):
            f[i] += w[a] * Z[a, i]
    return f


@compiled(fastmath={"reassoc", "contract"})
def _loss(Z: Float64, y: Float64, ridge: float, w: Float64) -> float:
    f = _linear(Z, w)
    value = 0.5 * ridge * float((w[1:] * w[1:]).sum())
    for i in range(len(f)):
        value += max(f[i], 0.0) - y[i] * f[i] + np.log1p(np.exp(-abs(f[i])))
    return value


@compiled(fastmath={"reassoc", "contract"})
def _derivatives(
    Z: Float64,
    y: Float64,
    ridge: float,
    w: Float64,
    gradient: Float64,
    H: Float64,
    weighted: Float64,
) -> None:
    """Gradient, and the lower triangle of the matrix of second derivatives."""
    d, n = Z.shape
    f = _linear(Z, w)
    excess, curvature = np.empty(n), np.empty(n)
    for i in range(n):
        e = np.exp(-abs(f[i]))
        excess[i] = (1.0 if f[i] >= 0 else e) / (1.0 + e) - y[i]
        curvature[i] = e / ((1.0 + e) * (1.0 + e))
    for a in range(d):
        slope = 0.0 if a == 0 else ridge * w[a]
        for i in range(n):
            slope += excess[i] * Z[a, i]
            weighted[a, i] = curvature[i] * Z[a, i]
        gradient[a] = slope
        for b in range(a + 1):
            total = 0.0
            for i in range(n):
                total += weighted[a, i] * Z[b, i]
            H[a, b] = total
        if a > 0:
            H[a, a] += ridge


@compiled(fastmath={"reassoc", "contract"})
def _factor(H: Float64) -> bool:
    """Cholesky's factorisation of H, in place of its lower triangle."""
    for i in range(len(H)):
        for j in range(i + 1):
            total = H[i, j]
            for k in range(j):
                total -= H[i, k] * H[j, k]
            if i > j:
                H[i, j] = total / H[j, j]
            elif total > 0:
                H[i, i] = np.sqrt(total)
            else:
                return False
    return True


@compiled(fastmath={"reassoc", "contract"})
def _solve(L: Float64, b: Float64, x: Float64) -> None:
    """Solve L L' x = b."""
    d = len(b)
    x[:] = b
    for i in range(d):
        for k in range(i):
            x[i] -= L[i, k] * x[k]
        x[i] /= L[i, i]
    for i in range(d - 1, -1, -1):
        x[i] /= L[i, i]
        for k in range(i):
            x[k] -= L[i, k] * x[i]
