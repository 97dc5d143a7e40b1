"""Many small logistic regressions, compiled: one a class, labelling and penalty, on the same rows.

Standardised rows enter, with the class of each row under every labelling; log-odds of further rows
leave. Each is what `LogisticClassifier` fits for that labelling and that penalty: the minimum of
``C x sum of log-losses + |w|^2 / 2``, by Newton's method, started where the next stronger penalty
ended.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from toptune.errors import ToptuneError
from toptune.heads.rows import Float64
from toptune.machine.threads import compiled

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


def log_odds(
    train: Float64, codes: NDArray[np.int64], n_classes: int, C: NDArray[np.float64], rows: Float64
) -> Float64:
    """Train on some rows, score others.

    Parameters
    ----------
    train : (m, d) float64
        Standardised.
    codes : (r, m) int64
        Class of each training row in each labelling.
    n_classes : int
    C : (p,) float64
        Inverse penalties, ascending.
    rows : (t, d) float64
        Standardised likewise.

    Returns
    -------
    (r, p, t, k) float64

    Raises
    ------
    ToptuneError
        Newton's method did not end; never seen, since the loss is strictly convex.
    """
    scores = np.empty((len(codes), len(C), len(rows), n_classes))
    train, rows = np.ascontiguousarray(train), np.ascontiguousarray(rows)
    codes = np.ascontiguousarray(codes)
    if not _all_log_odds(train, codes, C, rows, scores):
        raise ToptuneError("a logistic regression did not converge: lower C")
    return scores


@compiled()
def _all_log_odds(
    train: Float64, codes: NDArray[np.int64], C: Float64, rows: Float64, scores: Float64
) -> bool:
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
