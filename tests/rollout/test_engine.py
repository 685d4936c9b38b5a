"""Completions against enumeration, plain loops and the full forward pass."""

import dataclasses
import functools
import itertools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from bilevel_jax import config, types
from bilevel_jax.rollout import decoding, engine, sampling
from tests import processes, tabular
from tests.models import tiny
from tests.rollout import two_processes

VOCAB = 6
TABLE = tabular.policy(VOCAB)
STOP, LENGTH, ERROR = range(3)


@functools.cache
def _table():
  base = jax.device_get(TABLE.init(jax.random.key(7)))
  return {"table": base["table"].astype(np.float32)}


@functools.cache
def _tiny():
  policy = tiny.make("tiny-qwen3")
  base, adapter = tiny.weights(policy)
  return policy, base, adapter, jax.jit(policy.merge)(base, adapter)


def _requests(prompts=((1, 2), (3,), (0, 4, 5, 1)), **changes):
  prompts = [np.array(prompt, np.int32) for prompt in prompts]
  settings = {
    "prompt_ids": np.arange(len(prompts)) + 10,
    "samples_per_prompt": 4,
    "max_new_tokens": 12,
    "eos_ids": (0,),
    "sampling": types.Sampling(),
    "key": jax.random.key(0),
  }
  return types.Requests(prompts=prompts, **(settings | changes))


def _log_softmax(x, temperature=1.0):
  x = np.asarray(x, np.float64) / temperature
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _same(rollout, other, *, atol=1e-6):
  np.testing.assert_array_equal(rollout.tokens, other.tokens)
  np.testing.assert_array_equal(rollout.lengths, other.lengths)
  np.testing.assert_array_equal(rollout.finish_reasons, other.finish_reasons)
  np.testing.assert_allclose(rollout.logprobs, other.logprobs, atol=atol)


def _well_formed(rollout):
  requests = rollout.requests
  eos = np.isin(rollout.tokens, requests.eos_ids)
  for n, length in enumerate(rollout.lengths):
    reason = rollout.finish_reasons[n]
    budget = requests.budgets[rollout.prompt_index[n]]
    assert (reason == ERROR) or 1 <= length <= budget
    assert not eos[n, : max(length - 1, 0)].any()
    if reason != ERROR:
      assert eos[n, length - 1] == (reason == STOP)
    if reason == LENGTH:
      assert length == budget
    assert not rollout.tokens[n, length:].any()
    assert not rollout.logprobs[n, length:].any()
    assert (rollout.logprobs[n, :length] <= 0).all()


def test_sequences_have_the_frequencies_that_enumeration_gives():
  budget, eos, samples, last = 3, 0, 4096, 2
  requests = _requests(
    [(1, last)], samples_per_prompt=samples, max_new_tokens=budget
  )
  rollout = engine.generate(TABLE, _table(), requests, segment=2)
  _well_formed(rollout)
  logp = _log_softmax(_table()["table"])
  chances = {}
  for sequence in itertools.product(range(VOCAB), repeat=budget):
    ends = [i for i, token in enumerate(sequence) if token == eos]
    sequence = sequence[: ends[0] + 1 if ends else budget]
    path = (last, *sequence)
    chances[sequence] = math.exp(
      sum(logp[a, b] for a, b in itertools.pairwise(path))
    )
  assert sum(chances.values()) == pytest.approx(1)
  counts = dict.fromkeys(chances, 0)
  for tokens, length in zip(rollout.tokens, rollout.lengths, strict=True):
    counts[tuple(tokens[:length].tolist())] += 1
  common = [s for s in chances if samples * chances[s] >= 5]
  expected = np.array([samples * chances[s] for s in common])
  seen = np.array([counts[s] for s in common])
  expected = np.append(expected, samples - expected.sum())
  seen = np.append(seen, samples - seen.sum())
  statistic = ((seen - expected) ** 2 / expected).sum()
  freedom = len(common)
  assert freedom > 50
  assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_logprobs_are_those_of_the_table():
  rollout = engine.generate(TABLE, _table(), _requests())
  logp = _log_softmax(_table()["table"])
  for n, length in enumerate(rollout.lengths):
    prompt = rollout.requests.prompts[rollout.prompt_index[n]]
    path = np.append(prompt[-1], rollout.tokens[n, :length])
    np.testing.assert_allclose(
      rollout.logprobs[n, :length], logp[path[:-1], path[1:]], atol=1e-6
    )


def test_greedy_is_the_argmax_loop_of_the_full_forward_pass():
  policy, base, adapter, weights = _tiny()
  prompts = [np.array([3, 1, 4, 1, 5]), np.array([9])]
  requests = _requests(
    prompts,
    samples_per_prompt=1,
    max_new_tokens=6,
    eos_ids=(),
    sampling=types.Sampling(temperature=0.0),
  )
  rollout = engine.generate(policy, weights, requests)
  forward = jax.jit(policy.hidden)
  for prompt, tokens, logprobs in zip(
    prompts, rollout.tokens, rollout.logprobs, strict=True
  ):
    row = np.zeros((1, 16), np.int32)
    row[0, : len(prompt)] = prompt
    for t in range(6):
      at = len(prompt) + t
      hidden = forward(
        base,
        adapter,
        row,
        np.arange(16)[None],
        (np.arange(16) < at).astype(np.int32)[None],
      )
      logp = _log_softmax(hidden[0, at - 1] @ policy.unembedding(base))
      row[0, at] = logp.argmax()
      assert tokens[t] == row[0, at]
      assert logprobs[t] == pytest.approx(logp.max(), abs=1e-5)


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
  requests = _requests(max_new_tokens=40, samples_per_prompt=5)
  plain = engine.generate(TABLE, _table(), requests, segment=64)
  _same(engine.generate(TABLE, _table(), requests, **LAYOUTS[name]), plain)


def test_tokens_do_not_depend_on_the_number_of_devices():
  policy, _, _, weights = _tiny()
  names = ("data", "fsdp")
  mesh = jax.make_mesh(
    (2, 2), names, axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(names))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  requests = _requests(
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
  _same(spread, plain, atol=1e-5)
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
  requests = _requests()
  alone = dataclasses.replace(
    requests, prompts=requests.prompts[1:2], prompt_ids=requests.prompt_ids[1:2]
  )
  all_rows = engine.generate(TABLE, _table(), requests)
  few_rows = engine.generate(TABLE, _table(), alone)
  np.testing.assert_array_equal(all_rows.tokens[4:8], few_rows.tokens)


def test_a_call_does_not_remember_the_one_before():
  requests = _requests()
  first = engine.generate(TABLE, _table(), requests)
  engine.generate(TABLE, _table(), _requests([(5, 5, 5)]))
  _same(engine.generate(TABLE, _table(), requests), first)


def test_another_key_prompt_id_or_sample_draws_other_tokens():
  requests = _requests([(1, 2)] * 3, eos_ids=(), max_new_tokens=20)
  rollout = engine.generate(TABLE, _table(), requests)
  assert len({tuple(row) for row in rollout.tokens}) == 12
  other = dataclasses.replace(requests, key=jax.random.key(1))
  other = engine.generate(TABLE, _table(), other)
  assert (other.tokens != rollout.tokens).any(1).all()


def test_samples_that_exist_do_not_change_when_there_are_more():
  few = engine.generate(TABLE, _table(), _requests(samples_per_prompt=2))
  many = engine.generate(TABLE, _table(), _requests(samples_per_prompt=5))
  np.testing.assert_array_equal(
    many.tokens.reshape(3, 5, -1)[:, :2], few.tokens.reshape(3, 2, -1)
  )


def test_any_eos_of_the_set_ends_a_row_and_is_counted():
  rollout = engine.generate(TABLE, _table(), _requests(eos_ids=(0, 3, 5)))
  _well_formed(rollout)
  last = rollout.tokens[np.arange(12), rollout.lengths - 1]
  assert len(set(last[rollout.finish_reasons == STOP])) > 1


def _certain(token):
  """A table in which `token` follows every token."""
  return {
    "table": np.where(np.arange(VOCAB) == token, 50.0, 0.0).astype(np.float32)[
      None
    ]
    * np.ones((VOCAB, 1), np.float32)
  }


def test_an_eos_may_be_the_first_token():
  rollout = engine.generate(TABLE, _certain(0), _requests())
  assert (rollout.lengths == 1).all()
  assert (rollout.finish_reasons == STOP).all()
  assert not rollout.tokens.any()


def test_without_an_eos_the_budget_is_spent_to_the_last_token():
  rollout = engine.generate(TABLE, _certain(4), _requests(eos_ids=()))
  assert (rollout.lengths == 12).all()
  assert (rollout.finish_reasons == LENGTH).all()
  assert (rollout.tokens == 4).all()


def test_an_eos_as_the_last_token_of_the_budget_is_a_stop():
  rollout = engine.generate(TABLE, _certain(0), _requests(max_new_tokens=1))
  assert (rollout.finish_reasons == STOP).all()


def test_a_budget_of_one_gives_one_token():
  rollout = engine.generate(TABLE, _table(), _requests(max_new_tokens=1))
  _well_formed(rollout)
  assert rollout.tokens.shape == (12, 1)
  assert (rollout.lengths == 1).all()


def test_greedy_and_sampled_prompts_share_a_batch():
  temperature = np.array([0.0, 1.0, 0.0])
  requests = _requests(
    sampling=types.Sampling(temperature=temperature), eos_ids=()
  )
  tokens = engine.generate(TABLE, _table(), requests).tokens.reshape(3, 4, -1)
  follow = _table()["table"].argmax(-1)
  for p in (0, 2):
    expected = [follow[requests.prompts[p][-1]]]
    while len(expected) < 12:
      expected.append(follow[expected[-1]])
    assert (tokens[p] == np.array(expected)[None]).all()
  assert len({tuple(row) for row in tokens[1]}) > 1


def test_truncated_tokens_are_never_drawn():
  requests = _requests(eos_ids=(), sampling=types.Sampling(top_k=2))
  rollout = engine.generate(TABLE, _table(), requests)
  best = np.argsort(-_table()["table"], axis=-1)[:, :2]
  for row, p in zip(rollout.tokens, rollout.prompt_index, strict=True):
    path = np.append(requests.prompts[p][-1], row)
    for before, after in itertools.pairwise(path):
      assert after in best[before]


def test_logits_that_are_not_finite_end_their_row_with_an_error():
  table = _certain(2)["table"]
  table[2] = _certain(3)["table"][2]
  table[3, 1] = np.nan
  requests = _requests([(1,), (3,), (5, 2)], eos_ids=())
  rollout = engine.generate(TABLE, {"table": table}, requests)
  _well_formed(rollout)
  assert (rollout.finish_reasons == ERROR).all()
  assert rollout.lengths.reshape(3, 4).tolist() == [[2] * 4, [0] * 4, [1] * 4]
  assert rollout.tokens[0].tolist() == [2, 3] + [0] * 10


def test_the_batch_shrinks_and_the_cache_grows():
  seen = []
  requests = _requests(
    [(1, 2)], samples_per_prompt=64, max_new_tokens=60, eos_ids=(0, 1)
  )
  rollout = engine.generate(
    TABLE, _table(), requests, segment=2, cache_step=4, watch=seen.append
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
  requests = _requests(samples_per_prompt=7)
  engine.generate(TABLE, _table(), requests, max_rows=5, watch=seen.append)
  assert max(part.rows for part in seen) == 5


def test_values_of_requests_compile_nothing_new():
  def call(seed, temperature, top_p, eos, prompts):
    requests = _requests(
      prompts,
      key=jax.random.key(seed),
      max_new_tokens=10,
      eos_ids=(eos,),
      sampling=types.Sampling(temperature=temperature, top_p=top_p),
    )
    # No row finishes early enough for the batch to shrink.
    engine.generate(TABLE, _table(), requests, segment=16)

  call(0, 1.0, 0.9, 0, [(1, 2), (3, 4)])
  before = decoding.programs()
  call(1, 0.7, 0.8, 5, [(1, 2, 3, 4, 5), (2,)])
  assert decoding.programs() == before


def test_no_prompts_give_no_rows():
  rollout = engine.generate(TABLE, _table(), _requests([]))
  assert rollout.tokens.shape == (0, 12)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"prompts": [(1,), ()]}, "prompt 1 is empty"),
    ({"prompts": [(1, 6)]}, "prompt 0 holds token 6, .* vocabulary of 6"),
    ({"prompts": [(-1, 2)]}, "prompt 0 holds token -1"),
    (
      {"prompts": [(1,), (1, 2, 3, 4, 5)]},
      "prompt 1 has 5 tokens and needs 17 positions .* but the model has 16",
    ),
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ({"samples_per_prompt": 0}, "samples_per_prompt must be at least 1, got 0"),
    ({"prompt_ids": np.arange(2)}, r"each of the 3 prompts, got shape \(2,\)"),
    ({"sampling": types.Sampling(temperature=-1)}, "temperature must be"),
  ],
)
def test_requests_that_cannot_be_met_are_refused(changes, message):
  with pytest.raises(config.ConfigError, match=message):
    engine.generate(
      TABLE._replace(max_positions=16), _table(), _requests(**changes)
    )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"max_rows": 0}, "max_rows must be at least 1, got 0"),
    ({"segment": 0}, "segment must be at least 1, got 0"),
    ({"cache_step": 12}, "cache_step must be a power of two, got 12"),
    (
      {"cache_bytes": 100},
      "may take 100 bytes, but .* one row of 64 columns, which takes 256",
    ),
  ],
)
def test_options_that_cannot_be_met_are_refused(options, message):
  with pytest.raises(config.ConfigError, match=message):
    engine.generate(TABLE, _table(), _requests(), **options)


@functools.cache
def _full_forward():
  """A jitted oracle: all tokens of completions redrawn in one forward pass."""
  policy, base, adapter, _ = _tiny()

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
  deadline=None,
  derandomize=True,
  phases=(hypothesis.Phase.generate,),  # shrinking takes minutes
)
@hypothesis.given(data=strategies.data())
def test_any_workload_gives_the_tokens_of_the_full_forward_pass(data):
  # Eight rows, prompts of 2 to 17 tokens and budgets up to 24, so that all
  # examples share the programs of one set of shapes.
  draw, (policy, _, _, weights) = data.draw, _tiny()
  group = draw(strategies.sampled_from([1, 2, 4]))
  count = 8 // group
  rng = np.random.default_rng(draw(strategies.integers(0, 2**32)))
  several = lambda values: np.array(
    draw(strategies.lists(values, min_size=count, max_size=count))
  )
  lengths = several(strategies.integers(2, 17))
  prompts = [rng.integers(0, policy.vocab_size, n) for n in lengths]
  requests = _requests(
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
  _well_formed(rollout)
  waves = engine.generate(
    policy, weights, requests, max_rows=4, segment=6, cache_step=32
  )
  _same(waves, rollout, atol=1e-5)

  tokens = np.zeros((8, 17 + 24), np.int32)
  of = rollout.prompt_index
  for n, length in enumerate(rollout.lengths):
    row = np.concatenate([prompts[of[n]], rollout.tokens[n, :length]])
    tokens[n, : len(row)] = row
  rules = sampling.rules(requests.sampling, count)
  redrawn, logprobs = _full_forward()(
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
  drawn = np.arange(width)[None] < rollout.lengths[:, None]
  np.testing.assert_array_equal(
    rollout.tokens[drawn], redrawn[:, :width][drawn]
  )
  np.testing.assert_allclose(
    rollout.logprobs[drawn], logprobs[:, :width][drawn], atol=1e-5
  )
