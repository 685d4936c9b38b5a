"""Draws against closed forms, by chi-square, and slow loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import errors, types
from bilevel_jax.rollout import sampling

_DRAW = jax.jit(sampling.draw, static_argnames="needs")
_KEEP = jax.jit(sampling._keep, static_argnums=3)


def _rules(rows, **values):
  return sampling.rules(types.Sampling(**values), rows)


def _draw(logits, key, *, rows, index=0, rules=None):
  rules = _rules(rows) if rules is None else rules
  needs = sampling.needs(rules)
  ids = np.arange(rows, dtype=np.uint32)
  keys = sampling.row_keys(key, ids, np.zeros(rows, np.uint32))
  logits = jnp.broadcast_to(logits, (rows, logits.shape[-1]))
  sampled = _DRAW(keys, index, logits, rules, needs=needs)
  return [np.asarray(x) for x in sampled]


def _softmax(logits, temperature=1.0):
  logits = np.asarray(logits, np.float64) / temperature
  p = np.exp(logits - logits.max())
  return p / p.sum()


def _kept(p, *, top_k=0, top_p=1.0, min_p=0.0):
  """Indices that a plain loop over the sorted tokens keeps."""
  order = np.argsort(-p, kind="stable")
  order = order[: top_k or len(p)]
  kept, mass = [], 0.0
  for token in order:
    if mass >= top_p * p[order].sum():
      break
    kept.append(token)
    mass += p[token]
  return {int(t) for t in kept if p[t] >= min_p * p.max()}


def chi_square_is_likely(counts, expected):
  """Chi-square below its mean + 5 standard deviations, small bins pooled."""
  small = expected < 5
  counts = np.append(counts[~small], counts[small].sum())
  expected = np.append(expected[~small], expected[small].sum())
  filled = expected > 0
  assert not counts[~filled].any()
  counts, expected = counts[filled], expected[filled]
  freedom = len(counts) - 1
  statistic = ((counts - expected) ** 2 / expected).sum()
  return statistic < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("vocab_size", [3, 128, 300])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_tokens_have_the_frequencies_of_the_softmax(vocab_size, temperature):
  logits = 2 * jax.random.normal(jax.random.key(vocab_size), (vocab_size,))
  rows = 20_000
  rules = _rules(rows, temperature=temperature)
  tokens, _ = _draw(logits, jax.random.key(1), rows=rows, rules=rules)
  counts = np.bincount(tokens, minlength=vocab_size)
  expected = rows * _softmax(logits, temperature)
  assert chi_square_is_likely(counts, expected)
  assert not chi_square_is_likely(counts, rows * _softmax(logits, 0.9))


def test_tail_tokens_of_a_large_vocabulary_come_as_often_as_they_should():
  # A head of 1/2 comes first, so that float32 sums over it leave few bits.
  vocab_size, rows = 152_064, 64
  logits = np.zeros(vocab_size, np.float32)
  logits[0] = math.log(vocab_size - 1)
  p = _softmax(logits)
  draws = np.concatenate(
    [_draw(logits, jax.random.key(2), rows=rows, index=i)[0] for i in range(30)]
  )
  parts = np.array_split(p, 64)
  starts = np.cumsum([0, *(len(part) for part in parts)])
  counts, _ = np.histogram(draws, bins=starts)
  expected = len(draws) * np.array([part.sum() for part in parts])
  assert chi_square_is_likely(counts, expected)
  # Inside blocks too: the place in a block is as good as uniform.
  tail = draws[draws >= sampling._BLOCK]
  counts = np.bincount(tail % sampling._BLOCK, minlength=sampling._BLOCK)
  assert chi_square_is_likely(
    counts, np.full(sampling._BLOCK, len(tail) / sampling._BLOCK)
  )


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24, 1.0, 1.5])
def test_an_entry_without_mass_is_never_chosen_at_rounding_edges(uniform):
  for place in (0, 1, 62, 63):
    mass = np.zeros((1, 64), np.float32)
    mass[0, place] = 1e-30
    chosen = sampling._first_above(jnp.array(mass), jnp.array([uniform]))
    assert chosen[0] == place
  mass = np.ones((1, 64), np.float32)
  mass[0, 50:] = 0
  chosen = sampling._first_above(jnp.array(mass), jnp.array([uniform]))
  assert mass[0, chosen[0]] > 0


def test_a_sum_that_stalls_or_shrinks_yields_an_entry_with_mass(monkeypatch):
  # 1 + 2^-25 rounds to 1: entries after the first do not raise the sum.
  mass = np.full((1, 4), 2.0**-25, np.float32)
  mass[0, 0], mass[0, 2] = 1, 0
  for uniform in (0.0, 0.3, 1 - 2**-24, 1.0):
    chosen = sampling._first_above(jnp.array(mass), jnp.array([uniform]))
    assert mass[0, chosen[0]] > 0
  # Prefix sums made in parallel need not increase.
  sums = lambda mass, axis: jnp.array([[0.5, 0.7, 0.6, 1.0]])
  monkeypatch.setattr(sampling.jnp, "cumsum", sums)
  mass = jnp.array([[0.5, 0.0, 0.1, 0.4]])
  assert sampling._first_above(mass, jnp.array([0.65]))[0] == 3


@pytest.mark.parametrize(
  "cut",
  [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10_000},
    {"top_p": 0.05},
    {"top_p": 0.6},
    {"top_p": 0.999},
    {"min_p": 0.2},
    {"top_k": 9, "top_p": 0.7},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.1},
  ],
)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_truncation_keeps_what_a_loop_over_sorted_tokens_keeps(
  cut, temperature
):
  vocab_size = 200
  for seed in range(8):
    logits = 3 * jax.random.normal(jax.random.key(seed), (1, vocab_size))
    rules = _rules(1, temperature=temperature, **cut)
    scaled = logits / temperature
    scaled -= scaled.max(-1, keepdims=True)
    keep = _KEEP(scaled, jnp.exp(scaled), rules, sampling.needs(rules))
    p = _softmax(logits[0], temperature)
    assert set(np.flatnonzero(keep[0])) == _kept(p, **cut)


def test_masked_tokens_are_never_sampled_and_kept_ones_are_renormalised():
  logits = 2 * jax.random.normal(jax.random.key(0), (50,))
  logits = logits.at[7].set(-jnp.inf)
  rows = 20_000
  rules = _rules(rows, top_k=12, top_p=0.9)
  tokens, logprobs = _draw(logits, jax.random.key(1), rows=rows, rules=rules)
  p = _softmax(logits)
  kept = _kept(p, top_k=12, top_p=0.9)
  assert set(tokens) == kept
  inside = np.array([p[t] if t in kept else 0 for t in range(50)])
  counts = np.bincount(tokens, minlength=50)
  assert chi_square_is_likely(counts, rows * inside / inside.sum())
  # The log-probability stays that of the whole vocabulary.
  np.testing.assert_allclose(logprobs, np.log(p[tokens]), atol=1e-5)


def test_ties_with_the_last_kept_token_are_kept():
  logits = jnp.array([[0.0, -0.0, 0.0, -1.0]])
  rules = _rules(1, top_k=2)
  keep = _KEEP(logits, jnp.exp(logits), rules, sampling.needs(rules))
  assert keep[0].tolist() == [True, True, True, False]


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.3])
def test_logprobs_are_of_the_scaled_softmax(temperature):
  rows = 64
  logits = 5 * jax.random.normal(jax.random.key(0), (rows, 300))
  rules = _rules(rows, temperature=temperature)
  tokens, logprobs = _draw(logits, jax.random.key(1), rows=rows, rules=rules)
  expected = [
    np.log(_softmax(row, temperature or 1.0))[token]
    for row, token in zip(np.asarray(logits), tokens, strict=True)
  ]
  np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def test_a_temperature_near_zero_is_greedy():
  rows = 64
  logits = 5 * jax.random.normal(jax.random.key(0), (rows, 300))
  for temperature in (1e-6, 1e-10, 1e-30):
    rules = _rules(rows, temperature=temperature)
    tokens, logprobs = _draw(logits, jax.random.key(1), rows=rows, rules=rules)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    np.testing.assert_allclose(logprobs, 0, atol=1e-6)


def test_each_row_follows_its_own_rules():
  rows = 4
  logits = jnp.broadcast_to(jnp.array([0.0, 3.0, 2.0, 1.0]), (rows, 4))
  rules = _rules(
    rows,
    temperature=np.array([0.0, 1.0, 1.0, 1.0]),
    top_k=np.array([0, 1, 0, 0]),
    top_p=np.array([1.0, 1.0, 0.1, 1.0]),
  )
  draws = np.stack(
    [
      _draw(logits, jax.random.key(0), rows=rows, index=i, rules=rules)[0]
      for i in range(60)
    ]
  )
  assert (draws[:, :3] == 1).all()
  assert set(draws[:, 3]) == {0, 1, 2, 3}


def test_a_broken_row_has_no_finite_logprob_and_spoils_no_other():
  rows = 4
  logits = np.zeros((rows, 130), np.float32)
  logits[1, 5], logits[2, 129], logits[3, 4] = np.nan, np.inf, -np.inf
  for temperature in (0.0, 1.0):
    rules = _rules(rows, temperature=temperature)
    _, logprobs = _draw(logits, jax.random.key(0), rows=rows, rules=rules)
    assert np.isfinite(logprobs).tolist() == [True, False, False, True]


def test_keys_depend_on_the_request_alone():
  key = jax.random.key(0)
  logits = jnp.zeros((500,))
  tokens, _ = _draw(logits, key, rows=16)
  fewer, _ = _draw(logits, key, rows=5)
  np.testing.assert_array_equal(tokens[:5], fewer)
  assert len(set(tokens)) > 10
  later, _ = _draw(logits, key, rows=16, index=1)
  other, _ = _draw(logits, jax.random.key(1), rows=16)
  assert (tokens != later).any()
  assert (tokens != other).any()


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"temperature": -1.0}, "temperature must be at least 0, got -1"),
    ({"temperature": math.nan}, "must be a finite number, at least 0, got nan"),
    ({"temperature": math.inf}, "must be a finite number, at least 0, got inf"),
    (
      {"top_k": 2**31},
      r"top_k must be at least 0, below 2\^31, got 2147483648",
    ),
    ({"top_p": 0.0}, "top_p must be above 0, at most 1, got 0"),
    ({"top_p": np.array([0.5, 1.5])}, "got 1.5"),
    ({"top_k": -1}, r"top_k must be at least 0, below 2\^31, got -1"),
    ({"min_p": 1.0}, "min_p must be at least 0, below 1, got 1"),
    (
      {"top_k": np.array([1, 2, 3])},
      r"each of the 2 prompts, got shape \(3,\)",
    ),
  ],
)
def test_rules_out_of_range_are_refused(values, message):
  with pytest.raises(errors.ConfigError, match=message):
    sampling.rules(types.Sampling(**values), 2)


def test_needs_are_those_of_the_rows_that_sample():
  needs = lambda **values: sampling.needs(_rules(2, **values))
  assert needs() == sampling.Needs(True, False, False, False)
  assert needs(temperature=0.0, top_k=3) == (False, True, False, False)
  mixed = np.array([0.0, 1.0])
  assert needs(temperature=mixed, top_p=0.5) == (True, True, True, False)
  assert needs(min_p=0.5) == (True, False, False, True)


def test_greedy_takes_the_first_of_the_greatest_logits():
  rng = np.random.default_rng(0)
  logits = -rng.integers(1, 5, (64, 300)).astype(np.float32)  # full of ties
  logits[:40, 128:] -= 5  # the rest of a block is no better than it is
  rules = _rules(64, temperature=0.0)
  tokens, _ = _draw(logits, jax.random.key(0), rows=64, rules=rules)
  np.testing.assert_array_equal(tokens, logits.argmax(-1))
  logits[:] = -np.inf
  logits[:, 299] = -1e30
  tokens, _ = _draw(logits, jax.random.key(0), rows=64, rules=rules)
  assert (tokens == 299).all()
