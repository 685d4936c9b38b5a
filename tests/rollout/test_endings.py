"""Stop strings and budgets against plain loops over completions without them.

The oracle is what the engine gives without any: a key belongs to a token, so
a completion that is ended early is a prefix of the one that was not.
"""

import dataclasses

import jax
import numpy as np
import pytest

from bilevel_jax import errors, types
from bilevel_jax.rollout import endings, engine
from tests import tabular

TEXTS = ("", "a", "ab", "b", "ba", "c")  # of the tokens; 0 is the EOS
STOP, LENGTH, ERROR = range(3)
POLICY = tabular.policy(len(TEXTS))
TABLE = {"table": np.random.default_rng(3).normal(size=(6, 6)).astype("f4")}
LAYOUTS = ({"segment": 24}, {"segment": 5, "max_rows": 4, "cache_step": 8})


def _decode(tokens):
  return "".join(TEXTS[token] for token in tokens)


def _requests(**changes):
  return types.Requests(
    prompts=[np.array(p, np.int32) for p in ((1, 2), (3,), (4, 5, 1))],
    prompt_ids=np.arange(3),
    samples_per_prompt=4,
    sampling=types.Sampling(),
    key=jax.random.key(0),
    **{"max_new_tokens": 24, "eos_ids": (0,), **changes},
  )


def _generate(requests, options=LAYOUTS[0]):
  return engine.generate(POLICY, TABLE, requests, decode=_decode, **options)


def _expected(plain, lengths, reasons):
  """The plain rollout, each row cut at a length, for a reason."""
  keep = np.arange(plain.tokens.shape[1])[None] < np.array(lengths)[:, None]
  return dataclasses.replace(
    plain,
    tokens=np.where(keep, plain.tokens, 0),
    logprobs=np.where(keep, plain.logprobs, 0),
    lengths=np.array(lengths),
    finish_reasons=np.array(reasons),
  )


def _same(rollout, other):
  for name in ("tokens", "lengths", "finish_reasons"):
    np.testing.assert_array_equal(getattr(rollout, name), getattr(other, name))
  np.testing.assert_allclose(rollout.logprobs, other.logprobs, atol=1e-6)


def _loop_over_texts(plain, stop):
  lengths, reasons = plain.lengths.copy(), plain.finish_reasons.copy()
  for row, tokens in enumerate(plain.tokens):
    for n in range(1, plain.lengths[row] + 1):
      if any(string in _decode(tokens[:n]) for string in stop):
        lengths[row], reasons[row] = n, STOP
        break
  return _expected(plain, lengths, reasons)


@pytest.mark.parametrize("options", LAYOUTS)
def test_a_stop_string_ends_a_row_with_the_token_that_completes_it(
  options,
):
  stop = ("aba", "cc")  # spans tokens, and may end inside one
  plain = _generate(_requests())
  expected = _loop_over_texts(plain, stop)
  shorter = expected.lengths < plain.lengths
  assert shorter.any()
  assert not shorter.all()
  _same(_generate(_requests(stop=stop), options), expected)


def test_a_stop_string_outdoes_the_budget_and_an_eos_that_come_later():
  rows = _generate(_requests())
  first = _decode(rows.tokens[0, :1])
  stopped = _generate(_requests(stop=(first,)))
  assert stopped.lengths[0] == 1
  assert stopped.finish_reasons[0] == STOP


def test_text_before_a_row_ends_is_searched_with_few_calls():
  calls = []

  def decode(tokens):
    calls.append(len(tokens))
    return "x" * len(tokens)

  tokens = np.ones(1000, np.int32)
  stop = ("x" * 700,)
  assert endings.stopped_at(tokens, 600, stop, decode) == 700
  assert len(calls) < 15
  assert endings.stopped_at(tokens[:699], 600, stop, decode) is None


@pytest.mark.parametrize("options", LAYOUTS)
def test_each_prompt_has_a_budget_of_its_own(options):
  plain = _generate(_requests())
  budgets = np.array([3, 24, 7])
  limit = np.repeat(budgets, 4)
  expected = _expected(
    plain,
    np.minimum(plain.lengths, limit),
    np.where(plain.lengths > limit, LENGTH, plain.finish_reasons),
  )
  rollout = _generate(_requests(max_new_tokens=budgets), options)
  assert set(rollout.finish_reasons[:4]) == {STOP, LENGTH}
  assert not rollout.cut_by_total.any()
  _same(rollout, expected)


@pytest.mark.parametrize("options", LAYOUTS)
@pytest.mark.parametrize("total", [12, 61, 10_000])
def test_a_total_budget_cuts_all_completions_at_one_length(options, total):
  plain = _generate(_requests(stop=("cc",)))
  limit = max(
    t for t in range(1, 25) if np.minimum(plain.lengths, t).sum() <= total
  )
  expected = _expected(
    plain,
    np.minimum(plain.lengths, limit),
    np.where(plain.lengths > limit, LENGTH, plain.finish_reasons),
  )
  requests = _requests(stop=("cc",), total_tokens=total)
  rollout = _generate(requests, options)
  _same(rollout, expected)
  assert rollout.lengths.sum() <= total
  np.testing.assert_array_equal(rollout.cut_by_total, plain.lengths > limit)


def test_a_total_budget_ends_the_decoding_early():
  seen = []
  rollout = engine.generate(
    POLICY,
    TABLE,
    _requests(eos_ids=(), total_tokens=60),
    **LAYOUTS[1],
    watch=seen.append,
  )
  # Three waves of four rows, without a bound 24 steps each. After 20 steps of
  # the first the bound is 15; after 5 of the second 10; in the end 5.
  assert [part.steps for part in seen] == [5] * (4 + 2 + 1)
  assert rollout.lengths.tolist() == [5] * 12
  assert (rollout.finish_reasons == LENGTH).all()


def test_what_is_watched_holds_no_text_after_a_stop_string():
  def watch(part):
    for tokens, length in zip(
      part.so_far.tokens, part.so_far.lengths, strict=True
    ):
      assert "cc" not in _decode(tokens[: length - 1])
      assert not tokens[length:].any()

  engine.generate(
    POLICY,
    TABLE,
    _requests(stop=("cc",)),
    decode=_decode,
    **LAYOUTS[1],
    watch=watch,
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"stop": ("",)}, "a string of stop must not be empty"),
    ({"stop": ("a",), "decode": None}, "stop strings need decode, got None"),
    ({"total_tokens": 11}, "1 for each of the 12 completions, got 11"),
    (
      {"max_new_tokens": np.array([3, 0, 2])},
      "max_new_tokens must be at least 1, got 0",
    ),
    (
      {"max_new_tokens": np.array([3, 2])},
      r"one for each of the 3 prompts, got shape \(2,\)",
    ),
  ],
)
def test_endings_that_cannot_be_met_are_refused(changes, message):
  decode = changes.pop("decode", _decode)
  with pytest.raises(errors.ConfigError, match=message):
    engine.generate(POLICY, TABLE, _requests(**changes), decode=decode)
