"""Aggregators once more, from their papers' definitions, in float64 on the gradients themselves (NumPy and SciPy)."""

import numpy as np
import scipy.optimize

LOSSES = np.asarray([2.0, 0.5, 1.0, 4.0])
STATES = {  # of four families; the first F are used
    "gradvac": {"targets": np.asarray([[0, 0.2, 0.4, 0], [-0.1, 0, 0.3, 0], [0.1, 0.2, 0, 0], [0, 0, 0, 0]])},
    "uncertainty": {"log_variance": np.asarray([0.4, -0.2, 0.0, 1.0])},
    "famo": {
        "logits": np.asarray([0.3, -0.3, 0.1, 0.0]),
        "previous": np.asarray([2.5, 0.4, 1.0, 5.0]),
        "mean": np.asarray([0.02, -0.01, 0.0, 0.03]),
        "square": np.asarray([1e-3, 2e-3, 1e-4, 1e-3]),
        "count": np.asarray([4.0, 7.0, 4.0, 4.0]),
    },
    "gradnorm": {"logits": np.asarray([0.2, 0.0, -0.1, 0.0]), "first": np.asarray([4.0, 0.5, 3.0, 4.0])},
}


def state(name: str, families: int) -> dict[str, np.ndarray]:
    """The part of STATES for the first families."""
    return {k: v[(slice(families),) * v.ndim] for k, v in STATES.get(name, {}).items()}


def vectors_of(gram: np.ndarray) -> np.ndarray:
    """Some vectors with this Gram matrix."""
    return np.linalg.cholesky(gram)


def projected(vectors: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
    """Sum of the gradients after PCGrad (algorithm 1 of arXiv 2001.06782), or with `targets` after GradVac (equation 4
    of arXiv 2010.05874), the other families in order."""
    total = np.zeros(vectors.shape[1])
    for i in range(len(vectors)):
        g = vectors[i].astype(np.float64)
        for j in range(len(vectors)):
            length, other = np.linalg.norm(g), np.linalg.norm(vectors[j])
            if j == i or min(length, other) < 1e-12:
                continue
            c, t = g @ vectors[j] / (length * other), 0.0 if targets is None else targets[i, j]
            if c < t:
                numerator = t * np.sqrt(max(1 - c**2, 0)) - c * np.sqrt(1 - t**2)
                g = g + length * numerator / (other * np.sqrt(1 - t**2)) * vectors[j]
        total += g
    return total


def on_simplex(objective, families: int) -> np.ndarray:
    """The minimum over the simplex."""
    found = scipy.optimize.minimize(
        objective, np.ones(families) / families, bounds=[(0, 1)] * families, method="SLSQP",
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return found.x


def direction(name: str, g: np.ndarray) -> np.ndarray:
    """The update of gradients [F, D] by a method that looks at gradients only."""
    n, mean = len(g), g.mean(0)
    norms = np.linalg.norm(g, axis=1)
    units = g / norms[:, None]
    if name in ("pcgrad", "gradvac"):
        return projected(g, STATES["gradvac"]["targets"] if name == "gradvac" else None)
    if name == "mgda":
        return on_simplex(lambda w: np.sum((w @ g) ** 2), n) @ g
    if name == "cagrad":
        radius = 0.5 * np.linalg.norm(mean)
        w = on_simplex(lambda w: w @ g @ mean + radius * np.linalg.norm(w @ g), n)
        return mean + radius * (w @ g) / np.linalg.norm(w @ g)
    if name == "upgrad":
        return sum(row + scipy.optimize.nnls(g.T, -row)[0] @ g for row in g)
    if name == "nash_mtl":
        bargain = scipy.optimize.minimize(lambda x: np.sum((np.exp(x) @ g) ** 2) / 2 - x.sum(), np.zeros(n), tol=1e-9)
        return np.exp(bargain.x) @ g
    if name == "aligned_mtl":
        u, s, v = np.linalg.svd(g, full_matrices=False)
        return (s.min() * u @ v).sum(0)
    if name in ("config", "imtl_g"):
        equal = np.linalg.pinv(units) @ np.ones(n)
        if name == "config":
            equal = equal / np.linalg.norm(equal)
            return (g @ equal).sum() * equal
        w = np.linalg.lstsq(g.T, equal, rcond=None)[0]
        return equal / np.abs(w).sum()
    assert name == "sum"
    return g.sum(0)


def slope(f, x: np.ndarray) -> np.ndarray:
    """Gradient by central differences."""
    return scipy.optimize.approx_fprime(x, f, 1e-7)


def adam(
    x: np.ndarray, gradient: np.ndarray, mean: np.ndarray, square: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Algorithm 1 of arXiv 1412.6980 with rate 0.025: x, the mean and the square after the step of that number."""
    mean = 0.9 * mean + 0.1 * gradient
    square = 0.999 * square + 0.001 * gradient**2
    unbiased = mean / (1 - 0.9**steps), square / (1 - 0.999**steps)
    return x - 0.025 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8), mean, square


def famo(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [T, F] and logits [T, F] of algorithm 1 of arXiv 2306.03792 on losses [T, F], of which row t is both the
    loss after step t - 1 and the one before step t. Adam with weight decay 1e-3 in the gradient, as in torch."""
    x, mean, square = np.zeros((3, losses.shape[1]))
    weights, logits = [], []
    for t, now in enumerate(losses):
        if t:
            z = np.exp(x) / np.exp(x).sum()
            jacobian = np.diag(z) - np.outer(z, z)
            gradient = jacobian @ (np.log(losses[t - 1]) - np.log(now)) + 1e-3 * x
            x, mean, square = adam(x, gradient, mean, square, np.asarray(float(t)))
        z = np.exp(x) / np.exp(x).sum()
        weights.append(z / now / np.sum(z / now))
        logits.append(x)
    return np.asarray(weights), np.asarray(logits)


def learned(name: str, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(weights, the learned numbers after the step) of a method with losses, from STATES."""
    n, s = len(g), state(name, len(g))
    losses, norms = LOSSES[:n], np.linalg.norm(g, axis=1)

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    if name == "uncertainty":
        x = s["log_variance"]
        return np.exp(-x) / 2, x - 0.025 * slope(lambda x: np.sum(np.exp(-x) * losses + x) / 2, x)
    if name == "famo":
        x, change = s["logits"], np.log(s["previous"]) - np.log(losses)
        gradient = slope(lambda x: softmax(x) @ change, x) + 1e-3 * x
        x = adam(x, gradient, s["mean"], s["square"], s["count"] + 1)[0]
        return softmax(x) / losses / np.sum(softmax(x) / losses), x
    assert name == "gradnorm"
    x, left = s["logits"], losses / s["first"]
    w = n * softmax(x)
    target = np.mean(w * norms) * (left / left.mean()) ** 1.5
    return w, x - 0.025 * slope(lambda x: np.abs(n * softmax(x) * norms / norms.max() - target / norms.max()).sum(), x)
