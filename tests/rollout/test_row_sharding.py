"""Tokens do not depend on how rows are batched, cached, spread or repeated."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from bilevel_jax import types
from bilevel_jax.rollout import decoding, engine, sampling
from tests import processes, tabular
from tests.rollout import completions, two_processes

LAYOUTS = {
  "one row at a time": {"max_rows": 1},
  "waves": {"max_rows": 6, "segment": 5},
  "segments of one step": {"segment": 1},
  "short segments, small growth": {"segment": 6, "cache_step": 8},
  "prefill in pieces and chunks": {"prefill_tokens": 8},
  "few bytes": {"cache_bytes": 2048},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_tokens_of_a_table_do_not_depend_on_the_layout(name):
  requests = completions.requests(max_new_tokens=40, samples_per_prompt=5)
  plain = completions.generate(requests, segment=64)
  completions.same(completions.generate(requests, **LAYOUTS[name]), plain)


def test_tokens_do_not_depend_on_the_number_of_devices():
  policy, _, _, weights = completions.tiny_model()
  names = ("data", "fsdp")
  mesh = jax.make_mesh(
    (2, 2), names, axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(names))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  requests = completions.requests(
    [(5, 6, 7), (8,), (9, 10)],
    max_new_tokens=10,
    eos_ids=tuple(range(0, policy.vocab_size, 12)),
  )
  plain = engine.generate(policy, weights, requests, segment=8, cache_step=8)
  seen = []
  spread = engine.generate(
    policy,
    jax.device_put(weights, everywhere),
    requests,
    segment=8,
    cache_step=8,
    sharding=rows,
    watch=seen.append,
  )
  completions.same(spread, plain, atol=1e-5)
  assert all(part.rows % 4 == 0 for part in seen)


def test_two_processes_sample_what_one_does(tmp_path):
  """Each holds half of the rows; both are told all of the tokens."""
  processes.run_pair("tests.rollout.two_processes", tmp_path / "rollout")
  one = engine.generate(
    tabular.policy(two_processes.VOCABULARY),
    two_processes.weights(),
    two_processes.requests(),
    segment=4,
  )
  for process in range(2):
    with np.load(tmp_path / f"rollout-{process}.npz") as both:
      np.testing.assert_array_equal(both["tokens"], one.tokens)
      np.testing.assert_array_equal(both["lengths"], one.lengths)


def test_tokens_do_not_depend_on_the_other_requests():
  requests = completions.requests()
  alone = dataclasses.replace(
    requests, prompts=requests.prompts[1:2], prompt_ids=requests.prompt_ids[1:2]
  )
  all_rows = completions.generate(requests)
  few_rows = completions.generate(alone)
  np.testing.assert_array_equal(all_rows.tokens[4:8], few_rows.tokens)


def test_a_call_does_not_remember_the_one_before():
  requests = completions.requests()
  first = completions.generate(requests)
  completions.generate(completions.requests([(5, 5, 5)]))
  completions.same(completions.generate(requests), first)


def test_samples_that_exist_do_not_change_when_there_are_more():
  few = completions.generate(completions.requests(samples_per_prompt=2))
  many = completions.generate(completions.requests(samples_per_prompt=5))
  np.testing.assert_array_equal(
    many.tokens.reshape(3, 5, -1)[:, :2], few.tokens.reshape(3, 2, -1)
  )


def test_the_batch_shrinks_and_the_cache_grows():
  seen = []
  requests = completions.requests(
    [(1, 2)], samples_per_prompt=64, max_new_tokens=60, eos_ids=(0, 1)
  )
  rollout = completions.generate(
    requests, segment=2, cache_step=4, watch=seen.append
  )
  rows = [part.rows for part in seen]
  assert rows[0] == 64
  assert rows == sorted(rows, reverse=True)
  assert rows[-1] <= 2
  columns = [part.columns for part in seen]
  assert columns == sorted(columns)
  assert columns[0] < columns[-1]
  assert sum(part.tokens for part in seen) == rollout.lengths.sum()
  for part in seen:
    assert part.tokens <= part.rows * part.steps
    assert part.cache_bytes == 4 * part.rows * part.columns


def test_no_batch_has_more_rows_than_allowed():
  seen = []
  requests = completions.requests(samples_per_prompt=7)
  completions.generate(requests, max_rows=5, watch=seen.append)
  assert max(part.rows for part in seen) == 5


def test_values_of_requests_compile_nothing_new():
  def call(seed, temperature, top_p, eos, prompts):
    requests = completions.requests(
      prompts,
      key=jax.random.key(seed),
      max_new_tokens=10,
      eos_ids=(eos,),
      sampling=types.Sampling(temperature=temperature, top_p=top_p),
    )
    # No row finishes early enough for the batch to shrink.
    completions.generate(requests, segment=16)

  call(0, 1.0, 0.9, 0, [(1, 2), (3, 4)])
  before = decoding.programs()
  call(1, 0.7, 0.8, 5, [(1, 2, 3, 4, 5), (2,)])
  assert decoding.programs() == before


@functools.cache
def _full_forward():
  """A jitted oracle: all tokens of completions from one forward pass."""
  policy, base, adapter, _ = completions.tiny_model()

  def redraw(tokens, starts, keys, rules, needs):
    columns = jnp.arange(tokens.shape[1])[None]
    segments = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(columns, tokens.shape)
    hidden = policy.hidden(base, adapter, tokens, positions, segments)

    def draw(index):
      before = (starts + index - 1)[:, None, None]
      hidden_before = jnp.take_along_axis(hidden, before, 1)[:, 0]
      logits = hidden_before @ policy.unembedding(base)
      return sampling.draw(keys, index, logits, rules, needs=needs)

    return jax.vmap(draw, out_axes=1)(jnp.arange(24))

  return jax.jit(redraw, static_argnames="needs")


@hypothesis.settings(
  max_examples=8,
  derandomize=True,
  phases=(hypothesis.Phase.generate,),  # shrinking takes minutes
)
@hypothesis.given(data=strategies.data())
def test_any_workload_gives_the_tokens_of_the_full_forward_pass(data):
  # Eight rows, prompts of 2 to 17 tokens and budgets up to 24, so that all
  # examples share the programs of one set of shapes.
  draw, (policy, _, _, weights) = data.draw, completions.tiny_model()
  group = draw(strategies.sampled_from([1, 2, 4]))
  count = 8 // group
  rng = np.random.default_rng(draw(strategies.integers(0, 2**32)))
  several = lambda values: np.array(
    draw(strategies.lists(values, min_size=count, max_size=count))
  )
  lengths = several(strategies.integers(2, 17))
  prompts = [rng.integers(0, policy.vocab_size, n) for n in lengths]
  requests = completions.requests(
    prompts,
    prompt_ids=rng.integers(0, 2**32, count, dtype=np.uint32),
    samples_per_prompt=group,
    max_new_tokens=several(strategies.integers(1, 24)),
    eos_ids=tuple(rng.integers(0, policy.vocab_size, rng.integers(8))),
    sampling=types.Sampling(
      temperature=several(strategies.sampled_from([0.5, 1.0, 1.3]))
    ),
    key=jax.random.key(draw(strategies.integers(0, 99))),
  )
  rollout = engine.generate(policy, weights, requests, segment=24)
  completions.well_formed(rollout)
  waves = engine.generate(
    policy, weights, requests, max_rows=4, segment=6, cache_step=32
  )
  completions.same(waves, rollout, atol=1e-5)

  tokens = np.zeros((8, 17 + 24), np.int32)
  of = rollout.prompt_index
  for n, length in enumerate(rollout.lengths):
    row = np.concatenate([prompts[of[n]], rollout.tokens[n, :length]])
    tokens[n, : len(row)] = row
  rules = sampling.rules(requests.sampling, count)
  resampled, logprobs = _full_forward()(
    tokens,
    lengths[of],
    sampling.row_keys(
      requests.key,
      requests.prompt_ids[of],
      np.arange(8, dtype=np.uint32) % group,
    ),
    jax.tree.map(lambda x: x[of], rules),
    needs=sampling.needs(rules),
  )
  width = rollout.tokens.shape[1]
  sampled = np.arange(width)[None] < rollout.lengths[:, None]
  np.testing.assert_array_equal(
    rollout.tokens[sampled], resampled[:, :width][sampled]
  )
  np.testing.assert_allclose(
    rollout.logprobs[sampled], logprobs[:, :width][sampled], atol=1e-5
  )
