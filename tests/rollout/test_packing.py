"""Packed rows say exactly what the padded ones said, in fewer columns."""

import dataclasses

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies

from bilevel_jax.methods import accumulation, terms
from bilevel_jax.objectives import weighting
from bilevel_jax.rollout import assemble, packing
from tests import tiny_run

HOW = {
  "packed": packing.Packing(),
  "in wider rows": packing.Packing(row_tokens=48),
  "one sequence a row": packing.Packing(several=False),
  "log-probs in one size": packing.Packing(log_prob_sizes=1),
  "2 micro-batches": packing.Packing(micro_batch_tokens=96),
  "4 micro-batches": packing.Packing(micro_batch_tokens=40),
  "on 2 devices": packing.Packing(micro_batch_tokens=20, row_multiple=2),
}


def _batch(rng, rows, *, prompts=3, longest=14):
  """Rows of a few prompts, some of them with holes or without any weight."""
  sampled = [rng.integers(2, 60, rng.integers(1, 6)) for _ in range(prompts)]
  pairs = [
    (
      sampled[rng.integers(prompts)].astype(np.int32),
      rng.integers(2, 60, rng.integers(1, longest)).astype(np.int32),
    )
    for _ in range(rows)
  ]
  batch = assemble.token_batch(pairs, weighting.token_mean)
  holes = rng.random(batch.weights.shape) < 0.1
  empty = rng.random((rows, 1)) < 0.2
  weights = np.where(holes | empty, 0, batch.weights).astype(np.float32)
  return dataclasses.replace(batch, weights=weights)


def _flat(packed):
  fold = lambda x: None if x is None else x.reshape(-1, x.shape[-1])
  return {
    field.name: fold(getattr(packed, field.name))
    for field in dataclasses.fields(packed)
    if field.name not in ("where", "used")
  }


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@hypothesis.given(strategies.integers(0, 10_000), strategies.integers(1, 9))
@hypothesis.settings(max_examples=30)
def test_every_weighted_token_is_predicted_from_what_preceded_it(
  how, seed, rows
):
  """Read through the mask, a column sees the sequence up to it, in order."""
  batch = _batch(np.random.default_rng(seed), rows)
  packed = packing.pack(batch, how).packed
  flat = _flat(packed)
  np.testing.assert_array_equal(packed.where >= 0, batch.weights != 0)
  computed = packed.where[packed.where >= 0]
  assert len(set(computed.tolist())) == len(computed)
  scored = flat["columns"].shape[1]
  assert computed.max(initial=-1) < int(packed.used) * packed.columns[0].size
  for b, t in np.argwhere(batch.weights != 0):
    device, pair = divmod(packed.where[b, t], scored)
    each = len(flat["tokens"]) // len(flat["columns"])
    row, column = divmod(flat["columns"][device, pair], flat["tokens"].shape[1])
    row += device * each
    assert flat["targets"][device, pair] == batch.tokens[b, t]
    seen = np.arange(flat["tokens"].shape[1]) <= column
    seen &= flat["segment_ids"][row] == flat["segment_ids"][row, column]
    assert flat["segment_ids"][row, column] > 0
    if flat["continuations"] is not None:
      continuation = flat["continuations"][row]
      seen &= (continuation == 0) | (continuation == continuation[column])
    np.testing.assert_array_equal(
      flat["tokens"][row, seen], batch.tokens[b, :t]
    )
    np.testing.assert_array_equal(flat["positions"][row, seen], np.arange(t))


@pytest.mark.parametrize("kernel", ["xla", "chunked"])
def test_the_transformer_gives_the_same_log_probs_and_gradients(kernel):
  rng = np.random.default_rng(1)
  batch = _batch(rng, 9)
  policy = tiny_run.make_policy(
    without_token=frozenset(),
    attention=kernel,
    remat="everything" if kernel == "chunked" else "none",
  )
  base = jax.jit(policy.init)(jax.random.key(0))
  adapter = jax.jit(policy.init_adapter)(jax.random.key(1))
  adapter = jax.tree.map(lambda x: x + 0.05, adapter)

  @jax.jit
  def both(batch):
    objective = terms.sft_objective(policy, chunk=16)
    logprobs = lambda part: terms.token_logprobs(
      policy, base, adapter, part, temperature=1.3, chunk=16
    )[0]
    found = accumulation.gradient(objective)(base, adapter, batch)
    rows = accumulation.map_micro_batches(lambda p: ((), logprobs(p)), batch)
    return found, rows[1], logprobs(batch)

  expected, plain, _ = both(batch)
  plain = np.where(batch.weights != 0, plain, 0)
  for name, how in HOW.items():
    packed = packing.pack(batch, how)
    found, rows, at_once = both(packed)
    np.testing.assert_allclose(rows, plain, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(at_once, plain, atol=1e-5, err_msg=name)
    jax.tree.map(
      lambda x, y, name=name: np.testing.assert_allclose(
        x, y, atol=1e-6, err_msg=name
      ),
      found._replace(aux=None),
      expected._replace(aux=None),
    )


def test_groups_share_their_prompt_and_lengths_even_out():
  prompt = np.arange(2, 12, dtype=np.int32)
  lengths = [20, 3, 3, 3, 2, 2, 1, 1]
  pairs = [(prompt, np.full(n, 7, np.int32)) for n in lengths]
  batch = assemble.token_batch(pairs, weighting.token_mean)
  packed = packing.pack(batch, packing.Packing())
  # Ten of the prompt, once a row; of each answer all tokens but the last.
  needed = 10 + 19 + 10 + sum(n - 1 for n in lengths[1:])
  assert int((packed.packed.segment_ids > 0).sum()) <= needed
  assert packed.packed.tokens.shape == (1, 2, batch.tokens.shape[1])
  alone = packing.pack(batch, packing.Packing(several=False))
  assert packing.padding_share([packed]) < packing.padding_share([alone])


def test_in_one_size_the_log_probs_are_as_many_as_the_columns():
  """So that batches of other weights need no other program."""
  pairs = [(np.ones(1, np.int32), np.ones(40, np.int32))] * 6
  batch = assemble.token_batch(pairs, weighting.token_mean)
  few = dataclasses.replace(
    batch, weights=batch.weights * (np.arange(6) == 0)[:, None]
  )
  held = lambda how: [
    packing.pack(x, how).packed.targets.shape[-1] for x in (batch, few)
  ]
  often, seldom = held(
    packing.Packing(several=False, row_tokens=48, micro_batch_tokens=288)
  )
  assert seldom < often
  one = packing.Packing(
    several=False, row_tokens=48, micro_batch_tokens=288, log_prob_sizes=1
  )
  columns = packing.pack(batch, one).packed.tokens[0].size
  assert held(one) == [columns, columns]


def test_passes_that_hold_nothing_are_not_made():
  rng = np.random.default_rng(2)
  batch = _batch(rng, 40)
  packed = packing.pack(batch, packing.Packing(micro_batch_tokens=32))
  passes = packed.packed.tokens.shape[0]
  assert 0 < packed.packed.used < passes
  held = (packed.packed.segment_ids > 0).any(axis=(1, 2))
  np.testing.assert_array_equal(held, np.arange(passes) < packed.packed.used)
  none = dataclasses.replace(batch, weights=np.zeros_like(batch.weights))
  assert (
    packing.pack(none, packing.Packing(micro_batch_tokens=32)).packed.used == 0
  )
