"""The benchmark beside other libraries: closed forms, and the tool itself."""

import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hypergradient_peers
from benchmarks.peers import contestants
from benchmarks.peers.bilevel import (
  asked,
  jax_side,
  memory,
  page,
  problems,
  with_bilevel_jax,
)

KINDS = pytest.mark.parametrize("scalar", [True, False])


def _ridge(scalar):
  return problems.ridge(scalar=scalar, rows=30, features=6)


def _relative(got, want):
  return np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want)


@KINDS
def test_the_closed_form_is_the_derivative(scalar):
  data = _ridge(scalar)
  w, step = data["w"], 1e-5
  difference = [
    problems.ridge_outcome(data, w + e) - problems.ridge_outcome(data, w - e)
    for e in step * np.eye(len(w))
  ]
  got = problems.ridge_hypergradient(data, w)
  assert _relative(np.array(difference) / (2 * step), got) < 1e-7


def _ours(data, estimator, **settings):
  ask = asked.Ask("a test", "ridge", "", estimator, **settings)
  make = with_bilevel_jax.make
  estimate = make(ask.request(0), *jax_side.LOSSES["ridge"], data["step"])
  start = jnp.asarray(data["start"])
  lower = (start, start) if estimator == "penalty" else start
  arrays = {k: jnp.asarray(data[k]) for k in ("x", "y", "held_x", "held_y")}
  return jax.jit(estimate)(lower, jnp.asarray(data["w"]), arrays)


@KINDS
@pytest.mark.parametrize(
  ("estimator", "settings", "error"),
  [
    ("unrolled", {}, 1e-9),
    ("conjugate gradient", {"iterations": 6}, 1e-9),
    ("neumann", {"iterations": 5000}, 1e-9),
    # Of first order in 1 - p.
    ("penalty", {"penalty": 1 - 1e-4}, 1e-3),
    ("penalty", {"penalty": 1 - 1e-6}, 1e-5),
  ],
)
def test_ours_is_the_closed_form(scalar, estimator, settings, error):
  data = _ridge(scalar)
  want = problems.ridge_hypergradient(data, data["w"])
  with jax.enable_x64(True):
    got, _ = _ours(data, estimator, inner_steps=5000, **settings)
  assert _relative(got, want) < error


@KINDS
def test_one_step_takes_the_step_for_the_inverse(scalar):
  data = _ridge(scalar)
  with jax.enable_x64(True):
    got, b = _ours(data, "one_step", inner_steps=5000)
  b = np.asarray(b)
  assert _relative(b, problems.ridge_optimum(data, data["w"])) < 1e-9
  x, y = data["held_x"], data["held_y"]
  want = -np.exp(data["w"]) * b * data["step"] * (x.T @ (x @ b - y) / len(y))
  assert _relative(got, want.sum(keepdims=True) if scalar else want) < 1e-9


def _examples():
  rng = np.random.default_rng(3)
  y = rng.integers(0, 10, 300)
  return np.eye(10)[y] + 0.1 * rng.normal(size=(300, 10)), y


def test_half_of_the_training_labels_are_wrong_and_no_others():
  x, y = _examples()
  right = lambda rows: rows[:, :10].argmax(1)
  data = problems.cleaning(x, y, seed=1, train=100, validation=40)
  wrong = data["y"].argmax(1) != right(data["x"])
  assert wrong.sum() == 50
  assert (wrong == data["flipped"]).all()
  assert (data["held_y"].argmax(1) == right(data["held_x"])).all()
  assert (data["test_labels"] == right(data["test_x"])).all()
  rows = np.concatenate([data["x"], data["held_x"], data["test_x"]])
  assert len(np.unique(rows, axis=0)) == 300  # none is in two parts
  assert {a.dtype for a in (data["x"], data["w"], data["step"])} == {
    np.dtype(np.float32)
  }


def test_auroc_counts_pairs():
  data = {"flipped": np.array([True, False, False, True])}
  assert problems.auroc(data, np.array([0.0, 1.0, 0.0, -1.0])) == 3.5 / 4


def test_the_baselines_are_fixed_weights():
  data = problems.cleaning(*_examples(), seed=1, train=100, validation=40)
  parts = problems.baselines(data)
  weights = {
    name: 1 / (1 + np.exp(-part["w"].astype(float)))
    for name, part in parts.items()
  }
  assert np.allclose(weights["every label"], 1)
  assert np.allclose(weights["right labels alone"], ~data["flipped"])
  assert parts["validation alone"]["x"] is data["held_x"]
  assert parts["validation alone"]["w"].shape == (40,)


def test_memory_is_what_a_call_takes():
  took = memory.of(lambda: len(b"x" * 2**26))[1]["bytes"]
  if took is None:
    pytest.skip("memory is read from Linux's /proc, which is not here")
  assert 0.9 * 2**26 < took < 1.5 * 2**26


@pytest.mark.parametrize("peer", asked.PACKAGES)
@pytest.mark.parametrize("problem", ["ridge", "cleaning"])
def test_a_peer_gets_what_we_get(peer, problem, tmp_path):
  """A process as the benchmark starts it; another's code is the oracle."""
  if importlib.util.find_spec(peer) is None:
    pytest.skip(f"{asked.PACKAGES[peer]} is not installed (extra `peers`)")
  data = (
    _ridge(False)
    if problem == "ridge"
    else problems.cleaning(*_examples(), seed=0, train=100, validation=40)
  )
  np.savez(tmp_path / "data.npz", **data)
  # Betty 0.2.1's conjugate gradients are wrong (its issue 15).
  estimators = [
    name
    for name, who in asked.ESTIMATORS.items()
    if peer in who and (peer, name) != ("betty", "conjugate gradient")
  ]
  answers = []
  for name in ("bilevel_jax", peer):
    plan = contestants.Plan(
      name,
      sys.executable,
      f"benchmarks.peers.bilevel.with_{name}",
      {"contestant": name},
      {},
    )
    with contestants.Contestant(plan, {"float64": problem == "ridge"}) as one:
      answers.append(
        [
          one.run(
            asked.Ask(
              estimator,
              problem,
              str(tmp_path / "data.npz"),
              estimator,
              inner_steps=20,
              iterations=5,
              outer_steps=3,
              rates={name: 0.1},
            ).request(0)
          )
          for estimator in estimators
        ]
      )
  # Betty's one_step is a finite difference: its step in float64 is 0.01.
  tolerance = 1e-8 if problem == "ridge" and peer != "betty" else 1e-3
  for ours, its in zip(*answers, strict=True):
    for key in ("gradient",) if problem == "ridge" else ("b", "w"):
      assert _relative(its[key], np.array(ours[key])) < tolerance


def test_the_quick_form_says_what_is_not_installed(tmp_path, capsys):
  file, written = tmp_path / "figures.json", tmp_path / "page.md"
  arguments = ["--quick", "--problems", "ridge", "--only", "one_step"]
  arguments += ["--repeats", "1", "--peers", "jaxopt"]
  arguments += ["--json", str(file), "--page", str(written)]
  assert hypergradient_peers.main(arguments) == 0
  figures = json.loads(file.read_text())
  each = figures["ridge"][1]
  assert each["kind"] == "one each"
  assert each["error"] < 1
  text = written.read_text()
  absent = importlib.util.find_spec("jaxopt") is None
  assert ("- jaxopt was not installed: its rows are left out." in text) is (
    absent
  )
  assert f"{each['error']:.1e}" in text
  capsys.readouterr()
  assert hypergradient_peers.main(["--from", str(file)]) == 0
  assert capsys.readouterr().out.strip() == text.strip()


def test_the_page_says_where_another_is_ahead():
  row = lambda who, ratio, bytes_: {
    "name": "unrolled",
    "estimator": "unrolled",
    "contestant": who,
    "iterations": 0,
    "penalty": 0.0,
    "inner_steps": 20,
    "outer_steps": 200,
    "rate": 0.1,
    "test_accuracy": [0.9, 0.92],
    "auroc": [0.8, 0.8],
    "seconds": [0.001],
    "preparing": 1.0,
    "ours_over_it": ratio,
    "ours_over_it_range": [ratio - 0.1, ratio + 0.1],
    "bytes": bytes_ * 2**20,
  }
  text = page.write(
    {
      "settings": {"cores": 1, "repeats": 2, "seeds": 2, "rates": [0.1]},
      "missing": [],
      "contestants": [{"name": "bilevel_jax 0, jax 0"}],
      "cleaning": [
        row("bilevel_jax", 1.0, 4),
        row("jaxopt", 0.8, 9),
        row("optimistix", 0.95, 3),
        row("torchopt", 5.0, 1),
      ],
    }
  )
  assert "91.0% (78.3% to 103.7%)" in text
  assert text.split("1 MiB apart.")[1].strip().splitlines() == [
    "- cleaning, unrolled, jaxopt: time 0.80",
    "- cleaning, unrolled, torchopt: 1.0 MiB, ours 4.0",
  ]


def test_hyper_cleaning_without_its_digits_is_refused(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  arguments = ["--problems", "cleaning", "--quick"]
  assert hypergradient_peers.main(arguments) == 2
  assert "pip install scikit-learn" in capsys.readouterr().err


def test_unknown_peers_are_refused(capsys):
  with pytest.raises(SystemExit, match="2"):
    hypergradient_peers.main(["--peers", "higher"])
  assert "got 'higher'" in capsys.readouterr().err
