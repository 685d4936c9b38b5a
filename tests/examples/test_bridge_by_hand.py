"""The example keeps what it tells its reader."""

import importlib.util
import inspect
import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax.bilevel import penalty

PATH = pathlib.Path(__file__).parents[2] / "examples" / "bridge_by_hand.py"
RATES = (0.7, 0.4, 0.2)  # of base, RL-only base, adapter


@pytest.fixture(scope="module")
def example():
  spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _variables(example):
  """Returns Variables without any zeros, with two different bases."""
  keys = jax.random.split(jax.random.key(1), 4)
  vocab, rank = example.VOCAB, example.RANK
  return example.Variables(
    base=jax.random.normal(keys[0], (vocab, vocab)),
    rl_only_base=jax.random.normal(keys[1], (vocab, vocab)),
    adapter={
      "A": jax.random.normal(keys[2], (vocab, rank)),
      "B": jax.random.normal(keys[3], (rank, vocab)),
    },
  )


def _is_right(sequence) -> bool:
  """Whether each token of a sequence of Python integers is the next one."""
  return all((x + 1) % 8 == y for x, y in itertools.pairwise(sequence))


def _rollouts(seed: int) -> np.ndarray:
  """Returns [64, 4] tokens, about a third of them right, as `sample` does."""
  rng = np.random.default_rng(seed)
  questions = np.repeat(np.arange(8), 8)[:, None]
  right = (questions + np.arange(4)) % 8
  tokens = np.hstack([questions, rng.integers(0, 8, (64, 3))])
  return np.where(rng.random((64, 1)) < 1 / 3, right, tokens)


def test_the_gain_rises_from_zero_as_the_table_says(example, capsys):
  rows = example.main()
  gains = [row[-1] for row in rows]
  assert gains[0] == 0
  assert gains[-1] > 0.5
  assert all(x < y for x, y in itertools.pairwise(gains))
  for _, _, joint, rl_only, gain in rows:
    assert gain == pytest.approx(joint - rl_only, abs=1e-6)
  assert rows[0][2] == pytest.approx(1 / 512)  # a uniform policy
  printed = capsys.readouterr().out.splitlines()
  for row, line in zip(rows, printed[1:], strict=False):
    assert [float(x) for x in line.split()] == pytest.approx(row, abs=6e-4)
  # Its last words: RL alone gets there, too.
  assert float(printed[-1].split()[0]) < 0.1


def test_expected_reward_is_that_of_a_plain_enumeration(example):
  base, _, adapter = jax.tree.map(
    lambda x: np.asarray(x, np.float64).tolist(), _variables(example)
  )
  low_rank = range(len(adapter["B"]))
  table = []
  for i in range(8):
    row = [
      base[i][j]
      + sum(adapter["A"][i][r] * adapter["B"][r][j] for r in low_rank)
      for j in range(8)
    ]
    total = sum(math.exp(x) for x in row)
    table.append([math.exp(x) / total for x in row])
  want = everything = 0.0
  for sequence in itertools.product(range(8), repeat=4):
    probability = 1 / 8  # of the question
    for x, y in itertools.pairwise(sequence):
      probability *= table[x][y]
    everything += probability
    want += probability * _is_right(sequence)
  assert everything == pytest.approx(1)
  base, _, adapter = _variables(example)
  got = float(example.expected_reward(base, adapter))
  assert got == pytest.approx(want, rel=1e-5)


def test_samples_are_the_policy_s_own_grouped_by_question(example):
  following = 30.0 * jnp.roll(jnp.eye(8), 1, axis=1)  # x -> x + 1 for sure
  adapter = {"A": following[:, :4], "B": jnp.eye(4, 8)}  # its columns 0 .. 3
  base = following.at[:, :4].set(0.0)
  tokens = np.asarray(example.sample(jax.random.key(0), base, adapter))
  np.testing.assert_array_equal(tokens[:, 0], np.repeat(np.arange(8), 8))
  assert all(map(_is_right, tokens.tolist()))


def _log_prob(base, adapter, sequence):
  merged = base + jnp.dot(adapter["A"], adapter["B"])
  return sum(
    merged[x, y] - jnp.log(jnp.exp(merged[x]).sum())
    for x, y in itertools.pairwise(sequence)
  )


def _sft(base, adapter):
  demonstrations = [[0, 1, 2, 3], [2, 3, 4, 5]]
  return -sum(_log_prob(base, adapter, x) for x in demonstrations) / 2


def _rl(base, adapter, rollouts):
  """REINFORCE with the mean reward of each question's 8 answers taken off."""
  loss = 0.0
  for group in rollouts.reshape(8, 8, 4).tolist():
    rewards = [float(_is_right(x)) for x in group]
    mean = sum(rewards) / 8
    for sequence, reward in zip(group, rewards, strict=True):
      loss -= (reward - mean) * _log_prob(base, adapter, sequence) / 64
  return loss


@pytest.mark.parametrize("gain_weight", [1.0, 0.0])
def test_one_update_is_the_formula(example, gain_weight):
  old = _variables(example)
  rollouts, rl_rollouts = _rollouts(0), _rollouts(1)
  weight = example.PENALTY

  def joint(base, adapter):
    rl = _rl(base, adapter, rollouts)
    return (1 - weight) * _sft(base, adapter) + weight * rl

  def of_adapter(adapter):
    base, rl_only_base, _ = old
    gain = _rl(rl_only_base, adapter, rl_rollouts) - _rl(
      base, adapter, rollouts
    )
    sft = _sft(base, adapter)
    return (1 - weight) * sft - weight * gain_weight * gain

  gradients = (
    jax.grad(joint)(old.base, old.adapter),
    jax.grad(_rl)(old.rl_only_base, old.adapter, rl_rollouts),
    jax.grad(of_adapter)(old.adapter),
  )
  optimizers = [optax.sgd(rate) for rate in RATES]
  states = [o.init(v) for o, v in zip(optimizers, old, strict=True)]
  new, _ = example.update(
    optimizers, gain_weight, old, states, rollouts, rl_rollouts
  )
  for rate, before, after, gradient in zip(
    RATES, old, new, gradients, strict=True
  ):
    jax.tree.map(
      lambda x, y, g, rate=rate: np.testing.assert_allclose(
        (x - y) / rate, g, rtol=1e-4, atol=2e-6
      ),
      before,
      after,
      gradient,
    )


def test_the_line_that_it_names_is_there():
  line = "excess(of_lower.by_upper, 1, lower_only.by_upper)"
  assert line in PATH.read_text()
  assert line in inspect.getsource(penalty.combine)
