"""Completions that begin with given tokens: part of them, and not sampled."""

import numpy as np
import pytest

from bilevel_jax import errors, types
from bilevel_jax.rollout import engine
from tests.rollout import completions

PROMPTS = [(1, 2), (3,), (0, 4, 5, 1)]
PREFIXES = [(), (4, 5, 2), (3,), (), (2, 2, 2, 2, 2), (5, 5), (), (1,), (4,)]
PREFIXES = [np.array(prefix, np.int32) for prefix in PREFIXES]


def _generate(prefixes, prompts=PROMPTS, *, options=None, **changes):
  policy, _, _, weights = completions.tiny_model()
  settings = {"samples_per_prompt": 3, "max_new_tokens": 8} | changes
  requests = completions.requests(prompts, prefixes=prefixes, **settings)
  options = {"segment": 8, "decode": _text} | (options or {})
  return engine.generate(policy, weights, requests, **options)


def _text(tokens):
  return "".join(chr(ord("a") + token) for token in tokens)


def _rows(rollout):
  return [
    rollout.tokens[n, :length].tolist()
    for n, length in enumerate(rollout.lengths)
  ]


def test_a_completion_goes_on_as_from_a_prompt_that_ends_with_its_prefix():
  rollout = _generate(PREFIXES)
  np.testing.assert_array_equal(
    rollout.prefix_lengths, list(map(len, PREFIXES))
  )
  for n, prefix in enumerate(PREFIXES):
    of, given = n // 3, len(prefix)
    alone = _generate(
      None,
      [(*PROMPTS[of], *prefix)],
      prompt_ids=np.array([10 + of]),
      max_new_tokens=8 - given,
      first_sample=n % 3,
      samples_per_prompt=1,
    )
    length = rollout.lengths[n]
    assert _rows(rollout)[n] == [*prefix, *_rows(alone)[0]]
    np.testing.assert_allclose(
      rollout.logprobs[n, given:length],
      alone.logprobs[0, : length - given],
      atol=1e-5,
    )
    assert not rollout.logprobs[n, :given].any()
    assert not rollout.logprobs[n, length:].any()
    assert rollout.finish_reasons[n] == alone.finish_reasons[0]


def test_empty_prefixes_are_none():
  plain, empty = _generate(None), _generate([PREFIXES[0]] * 9)
  assert not plain.prefix_lengths.any()
  for name in ("tokens", "lengths", "logprobs", "finish_reasons"):
    np.testing.assert_array_equal(getattr(plain, name), getattr(empty, name))


@pytest.mark.parametrize(
  "options", [{"max_rows": 2, "segment": 3}, {"cache_bytes": 20_000}]
)
def test_prefixes_do_not_depend_on_the_layout(options):
  whole, parted = _generate(PREFIXES), _generate(PREFIXES, options=options)
  np.testing.assert_array_equal(whole.tokens, parted.tokens)
  np.testing.assert_allclose(whole.logprobs, parted.logprobs, atol=1e-5)


def test_the_greedy_completion_goes_on_from_its_own_beginning():
  greedy = types.Sampling(temperature=0.0)
  plain = _generate(None, sampling=greedy)
  begun = [row[: n % 4] for n, row in enumerate(_rows(plain))]
  begun = [np.array(prefix, np.int32) for prefix in begun]
  assert _rows(_generate(begun, sampling=greedy)) == _rows(plain)


def test_a_prefix_that_ends_or_fills_a_completion_is_all_of_it():
  prefixes = [(1, 0, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5), (2, 3, 1), (1, 2, 0)]
  prefixes += [(5,), (), (), ()]
  rollout = _generate(
    [np.array(prefix, np.int32) for prefix in prefixes],
    max_new_tokens=np.array([4, 4, 8]),
    stop=("cd",),
  )
  # An EOS, a full budget (twice), a stop string, an EOS at the end.
  whole = [[1, 0], [1, 2, 3], [1, 2, 3], [2, 3], [1, 2, 0]]
  assert _rows(rollout)[:5] == whole
  assert rollout.finish_reasons[:5].tolist() == [completions.STOP] * 5
  np.testing.assert_array_equal(rollout.prefix_lengths[:5], [2, 3, 3, 2, 3])
  filled = _generate(
    [np.array((1, 2, 3, 4, 5), np.int32)] * 9, max_new_tokens=4
  )
  assert _rows(filled) == [[1, 2, 3, 4]] * 9
  assert set(filled.finish_reasons) == {completions.LENGTH}


def test_a_total_counts_what_was_given():
  rollout = _generate(PREFIXES, total_tokens=30, eos_ids=())
  free, most = _generate(PREFIXES, eos_ids=()).lengths, rollout.lengths.max()
  np.testing.assert_array_equal(rollout.lengths, np.minimum(free, most))
  assert rollout.lengths.sum() <= 30 < np.minimum(free, most + 1).sum()


@pytest.mark.parametrize(
  ("prefixes", "message"),
  [
    (PREFIXES[:8], "one for each of the 9 completions, got 8"),
    ([np.array([-1])] * 9, "prefix 0 holds token -1"),
  ],
)
def test_prefixes_that_cannot_be_given_are_refused(prefixes, message):
  with pytest.raises(errors.ConfigError, match=message):
    _generate(prefixes)
