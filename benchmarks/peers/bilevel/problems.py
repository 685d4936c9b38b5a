"""The two problems that benchmarks/hypergradient_peers.py differentiates.

Arrays are numpy's; every contestant reads the same ones from one file.

Ridge regression, a strength exp(w_j) for each coefficient, or one for all:

    lower  |X b - y|^2 / 2n + sum_j exp(w_j) b_j^2 / 2
    upper  |X' b - y'|^2 / 2m, on held-out rows

Data hyper-cleaning (Franceschi et al., arXiv 1703.01785): training examples,
half of their labels wrong, weighed by sigmoid(w_i):

    lower  scale [ mean_i sigmoid(w_i) l_i(b) + decay |b|^2 / 2 ]
    upper  mean of l_i(b), on validation examples

l_i is softmax regression's loss, b a matrix [features, classes]. The scale
changes neither b* nor the hypergradient; with it every curvature is above 100
eps size(b), the least that optimistix's conjugate gradients accept.
"""

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray]
DECAY = 1e-3
CLASSES = 10
SCALE = 10.0
STEP = 0.2 / SCALE
"""Of b in hyper-cleaning: about 1 over the largest second derivative."""
TRAIN, VALIDATION = 1000, 200
FEATURES = 200


def ridge(
  *, scalar: bool, rows: int = 1000, features: int = FEATURES, seed: int = 0
) -> Arrays:
  """Returns the data in float64, the upper variables w, and a step for b.

  Columns have standard deviations from 1 down to 0.1, and all share a part, so
  that the lower level is not solved in a few steps.

  Args:
    scalar: one strength for all coefficients; else one for each.
    rows: of training; as many are held out.
  """
  rng = np.random.default_rng(seed)
  truth = rng.normal(size=features) * (rng.random(features) < 0.3)
  scale = np.linspace(1, 0.1, features)

  def sample():
    shared = rng.normal(size=(rows, 1)) * 0.3
    x = (rng.normal(size=(rows, features)) + shared) * scale
    return x, x @ truth + 2 * rng.normal(size=rows)

  (x, y), (held_x, held_y) = sample(), sample()
  w = np.full(1, -3.0) if scalar else rng.normal(-3.0, 1.0, features)
  data = {"x": x, "y": y, "held_x": held_x, "held_y": held_y, "w": w}
  largest = np.linalg.eigvalsh(_hessian(data, w))[-1]
  start = np.zeros(features)
  return {**data, "start": start, "step": np.array(1 / largest)}


def ridge_optimum(data: Arrays, w: NDArray) -> NDArray:
  """Returns b*(w), [features]."""
  x, y = data["x"], data["y"]
  return np.linalg.solve(_hessian(data, w), x.T @ y / len(y))


def ridge_outcome(data: Arrays, w: NDArray) -> float:
  """Returns the upper loss at b*(w)."""
  error = data["held_x"] @ ridge_optimum(data, w) - data["held_y"]
  return float(error @ error / len(error) / 2)


def ridge_hypergradient(data: Arrays, w: NDArray) -> NDArray:
  """Returns its derivative by w: -exp(w) b* H^-1 (gradient of upper by b)."""
  b = ridge_optimum(data, w)
  x, y = data["held_x"], data["held_y"]
  v = np.linalg.solve(_hessian(data, w), x.T @ (x @ b - y) / len(y))
  by_feature = -np.exp(w) * b * v
  return by_feature if len(w) > 1 else by_feature.sum(keepdims=True)


def _hessian(data, w):
  x = data["x"]
  return x.T @ x / len(x) + np.diag(np.broadcast_to(np.exp(w), x.shape[1]))


def digits() -> tuple[NDArray, NDArray]:
  """Returns scikit-learn's digits: [1797, 64] in [0, 1], and [1797] labels."""
  from sklearn import datasets

  x, y = datasets.load_digits(return_X_y=True)
  return x / 16, y


def cleaning(
  x: NDArray,
  y: NDArray,
  *,
  seed: int,
  train: int = TRAIN,
  validation: int = VALIDATION,
) -> Arrays:
  """Returns a split of labelled examples with half of its training set spoiled.

  In float32. `flipped` marks the wrong labels; w and b begin at 0.

  Args:
    x: [N, features].
    y: [N], in 0..9.
    seed: of the split, of what is spoiled, and of the wrong labels.
    train: examples of training; `validation` more follow, the rest are tests.
  """
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(y))
  x, y = np.c_[x, np.ones(len(x))][order], y[order]
  flipped = rng.permutation(train) < train // 2
  given = (y[:train] + rng.integers(1, CLASSES, train)) % CLASSES
  labels = np.where(flipped, given, y[:train])
  a, b = train, train + validation
  one_hot = np.eye(CLASSES)
  arrays = {
    "x": x[:a],
    "y": one_hot[labels],
    "held_x": x[a:b],
    "held_y": one_hot[y[a:b]],
    "test_x": x[b:],
    "w": np.zeros(a),
    "start": np.zeros((x.shape[1], CLASSES)),
    "step": np.array(STEP),
  }
  arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
  return {**arrays, "test_labels": y[b:], "flipped": flipped}


def test_accuracy(data: Arrays, b: NDArray) -> float:
  """Returns the share of test examples that b, [features, classes], knows."""
  return float(np.mean((data["test_x"] @ b).argmax(1) == data["test_labels"]))


def auroc(data: Arrays, w: NDArray) -> float:
  """Returns how often a right label has a larger weight than a wrong one."""
  right, wrong = w[~data["flipped"]], w[data["flipped"]]
  above = (right[:, None] > wrong).mean() + (right[:, None] == wrong).mean() / 2
  return float(above)


def baselines(data: Arrays) -> dict[str, Arrays]:
  """Returns data for b alone: its fixed w is what there is to know.

  All labels trusted, the validation examples in place of the training ones,
  and the right labels alone (which nobody knows).
  """
  sure = np.float32(20)  # sigmoid(20) is 1 in float32
  held = {"x": data["held_x"], "y": data["held_y"]}
  trusted = np.full_like(data["w"], sure)
  return {
    "every label": {**data, "w": trusted},
    "validation alone": {**data, **held, "w": trusted[: len(held["x"])]},
    "right labels alone": {
      **data,
      "w": np.where(data["flipped"], -sure, sure),
    },
  }
