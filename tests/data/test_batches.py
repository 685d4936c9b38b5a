"""Streams: what is sampled depends on the position alone."""

import collections
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from bilevel_jax import errors, types
from bilevel_jax.data import batches, order


class Characters:
  """A token for each character; a solution ends with token 0."""

  def prompt_tokens(self, question):
    return np.array([ord(c) for c in question.question], np.int32)

  def demonstrations(self, question):
    solution = np.array([*map(ord, question.solution), 0], np.int32)
    prompt = self.prompt_tokens(question)
    return [types.Demonstration(0, prompt, solution)]


def _question(text, solution=None):
  return types.Question(text, text, "", solution, {})


QUESTIONS = [_question("q" * n, "s" * n) for n in range(1, 8)]


@hypothesis.given(
  size=strategies.integers(1, 20),
  epoch=strategies.integers(0, 5),
  seed=strategies.integers(0, 2**40),
)
def test_every_epoch_is_a_permutation(size, epoch, seed):
  sampled = order.of_epochs(size, epoch * size, size, seed)
  np.testing.assert_array_equal(np.sort(sampled), np.arange(size))


def test_order_can_be_resumed_at_every_position():
  whole = order.of_epochs(7, 0, 40, 3)
  for position in range(40):
    for count in (0, 1, min(5, 40 - position), 40 - position):
      np.testing.assert_array_equal(
        order.of_epochs(7, position, count, 3), whole[position:][:count]
      )


def test_epochs_and_seeds_differ():
  first, second = order.of_epochs(50, 0, 100, 0).reshape(2, 50)
  assert (first != second).any()
  assert (first != order.of_epochs(50, 0, 50, 1)).any()


def _own(examples, question):
  stream = batches.Demonstrations(examples, Characters(), max_tokens=90)
  (found,) = stream.of([question])
  return None if found is None else "".join(map(chr, found.solution[:-1]))


def test_a_question_has_the_demonstration_of_its_own_text_or_none():
  """Ids of two files may be alike by chance: row numbers, for one."""
  named = lambda name, text, solution=None: types.Question(
    name, text, "", solution, {}
  )
  examples = [named("0", "9*0", "nine"), named("1", "1+1", "two")]
  assert _own(examples, named("0", "0+0")) is None
  assert _own(examples, named("0", "1+1")) == "two"
  several = [*examples, named("2", "1+1", "another"), named("3", "1+1", "last")]
  assert _own(several, named("2", "1+1")) == "another"
  assert _own(several, named("7", "1+1")) == "two"


def test_prompts_can_be_resumed_at_every_position():
  stream = batches.Prompts(QUESTIONS, Characters(), max_tokens=9, seed=5)
  questions, prompts, ids = stream.take(0, 20)
  for position in range(20):
    (question,), (prompt,), one_id = stream.take(position, 1)
    assert question == questions[position]
    np.testing.assert_array_equal(prompt, prompts[position])
    assert one_id == ids[position]


@hypothesis.given(
  examples=strategies.lists(strategies.booleans(), min_size=2, max_size=9),
  share=strategies.floats(0.02, 0.98),
  start=strategies.integers(0, 50),
)
def test_a_share_of_the_stream_is_of_the_chosen(examples, share, start):
  hypothesis.assume(any(examples) and not all(examples))
  questions = [_question("q" * n) for n in range(1, len(examples) + 1)]
  stream = batches.Prompts(questions, Characters(), max_tokens=9, seed=5)
  stream.set_shares([0 if one else 1 for one in examples], [share, 1 - share])
  asked, prompts, _ = stream.take(start, 200)
  is_chosen = np.array([examples[len(q.question) - 1] for q in asked])
  assert [len(q.question) for q in asked] == [len(p) for p in prompts]
  # Of every window, share * n rounded down or up.
  for n in (1, 8, 200):
    windows = np.convolve(is_chosen, np.ones(n), mode="valid")
    assert np.abs(windows - share * n).max() < 1
  # Each part of the stream has each of its examples as often as any other.
  for part, size in ((is_chosen, sum(examples)), (~is_chosen, len(examples))):
    times = collections.Counter(
      q.question for q, is_one in zip(asked, part, strict=True) if is_one
    )
    assert len(times) <= size
    if len(times) > 1 and start == 0:
      assert max(times.values()) - min(times.values()) <= 1
  for position in (0, 7, 100):  # what is asked depends on the position alone
    again, _, ids = stream.take(start + position, 9)
    assert again == asked[position:][:9]
    assert ids.tolist() == list(range(start + position, start + position + 9))


def test_every_example_is_in_the_stream_s_hash_whatever_its_share():
  stream = batches.Prompts(QUESTIONS, Characters(), max_tokens=9, seed=5)
  before = stream.every()
  stream.set_shares([0] + [1] * 6, [1.0, 0.0])
  assert stream.take(0, 3)[0] == QUESTIONS[:1] * 3
  after = stream.every()
  assert after[0] == before[0]
  assert {q.id for q in after[0]} == {q.id for q in QUESTIONS}


def test_a_question_that_comes_twice_has_two_prompt_ids():
  stream = batches.Prompts(QUESTIONS[:1], Characters(), max_tokens=9)
  questions, prompts, ids = stream.take(3, 4)
  assert questions == QUESTIONS[:1] * 4
  assert ids.dtype == np.uint32
  assert len(set(ids.tolist())) == 4
  assert prompts[0].dtype == np.int32


def test_overlong_prompts_are_dropped_and_counted():
  stream = batches.Prompts(QUESTIONS, Characters(), max_tokens=4)
  assert stream.counts == batches.Counts(given=7, dropped=3, kept=4)
  _, prompts, _ = stream.take(0, 4)
  assert sorted(map(len, prompts)) == [1, 2, 3, 4]


def test_overlong_prompts_lose_their_start_and_are_counted():
  questions = [_question("abc"), _question("abcdef")]
  stream = batches.Prompts(
    questions, Characters(), max_tokens=4, overlong="truncate"
  )
  assert stream.counts == batches.Counts(given=2, truncated=1, kept=2)
  _, prompts, _ = stream.take(0, 2)
  texts = {"".join(map(chr, prompt)) for prompt in prompts}
  assert texts == {"abc", "cdef"}


def test_prompts_that_are_all_too_long_are_refused_with_the_numbers():
  with pytest.raises(errors.ConfigError) as error:
    batches.Prompts(QUESTIONS[4:], Characters(), max_tokens=4)
  assert str(error.value) == (
    "data.max_prompt_tokens is 4, but the shortest of 3 prompts has 5 tokens"
  )


def test_a_stream_without_questions_is_refused():
  with pytest.raises(errors.ConfigError, match="at least one question"):
    batches.Prompts([], Characters(), max_tokens=4)


def test_two_streams_share_questions_and_keep_their_own_positions():
  prompts = batches.Prompts(QUESTIONS, Characters(), max_tokens=9, seed=1)
  stream = batches.Demonstrations(
    QUESTIONS, Characters(), max_tokens=20, seed=2
  )
  before = prompts.take(3, 5)[2]
  first = stream.take(0, 7)
  assert {len(d.prompt) for d in first} == set(range(1, 8))
  np.testing.assert_array_equal(prompts.take(3, 5)[2], before)
  for d in first:
    assert len(d.solution) == len(d.prompt) + 1
    assert d.solution[-1] == 0


def test_demonstrations_can_be_resumed_at_every_position():
  stream = batches.Demonstrations(QUESTIONS, Characters(), max_tokens=20)
  whole = stream.take(0, 20)
  for position in range(20):
    (one,) = stream.take(position, 1)
    np.testing.assert_array_equal(one.prompt, whole[position].prompt)
    np.testing.assert_array_equal(one.solution, whole[position].solution)


def test_a_demonstration_is_found_by_its_id_and_by_its_question():
  stream = batches.Demonstrations(QUESTIONS, Characters(), max_tokens=9)
  assert [d.id for d in stream.examples] == [0, 1, 2, 3]
  sampled = stream.take(2, 6)
  for one, found in zip(sampled, stream.at(d.id for d in sampled), strict=True):
    assert type(one.id) is int  # a method's memory is JSON
    assert found is one is stream.examples[one.id]
  # The last three are too long to be kept.
  own = stream.of([QUESTIONS[2], QUESTIONS[6], QUESTIONS[0]])
  assert own == [stream.examples[2], None, stream.examples[0]]


def test_demonstrations_count_what_they_leave_out():
  questions = [*QUESTIONS, _question("none"), _question("empty", "")]
  stream = batches.Demonstrations(questions, Characters(), max_tokens=9)
  assert stream.counts == batches.Counts(
    given=9, without_solution=2, dropped=3, kept=4
  )


def test_overlong_demonstrations_lose_the_end_of_the_solution():
  questions = [
    _question("ab", "cd"),
    _question("ab", "cdef"),
    _question("abcde", "f"),
  ]
  stream = batches.Demonstrations(
    questions, Characters(), max_tokens=5, overlong="truncate"
  )
  # The third one's prompt leaves no room for a token of its solution.
  assert stream.counts == batches.Counts(
    given=3, dropped=1, truncated=1, kept=2
  )
  solutions = {"".join(map(chr, d.solution)) for d in stream.take(0, 2)}
  assert solutions == {"cd\0", "cde"}


@pytest.mark.parametrize(
  ("overlong", "limit", "sentence"),
  [
    ("drop", 2, "prompt plus solution has 3 tokens, of 7 demonstrations"),
    ("truncate", 1, "prompt has 1 tokens, of 7 demonstrations"),
  ],
)
def test_demonstrations_that_are_all_too_long_are_refused_with_the_numbers(
  overlong, limit, sentence
):
  with pytest.raises(errors.ConfigError) as error:
    batches.Demonstrations(
      QUESTIONS, Characters(), max_tokens=limit, overlong=overlong
    )
  assert str(error.value) == (
    f"data.max_demonstration_tokens is {limit}, but the shortest {sentence}"
  )


def test_demonstrations_without_any_solution_are_refused():
  with pytest.raises(errors.ConfigError, match="none of the 1 demonstrations"):
    batches.Demonstrations([_question("q")], Characters(), max_tokens=9)


def _chosen(share, seed):
  stream = batches.Demonstrations(
    QUESTIONS, Characters(), max_tokens=99, share=share, seed=seed
  )
  assert stream.counts.not_in_share == len(QUESTIONS) - len(stream)
  return {len(d.prompt) for d in stream.take(0, len(stream))}


def test_a_share_is_chosen_by_the_seed_and_grows_with_the_share():
  shares = [_chosen(share, 0) for share in (0.0, 0.01, 0.3, 0.6, 1.0)]
  assert [len(chosen) for chosen in shares] == [0, 1, 2, 4, 7]
  for smaller, larger in itertools.pairwise(shares):
    assert smaller < larger
  assert len({frozenset(_chosen(0.3, seed)) for seed in range(9)}) > 1


def test_an_empty_share_gives_no_demonstrations():
  stream = batches.Demonstrations(
    QUESTIONS, Characters(), max_tokens=99, share=0.0
  )
  assert stream.take(5, 3) == []


def _scored(*lengths):
  """Demonstrations with a log-prob for each token: -n for the n-th question."""
  return [
    _question("q", "s" * n)._replace(
      id=str(n), meta={"logprobs": [-float(n)] * m}
    )
    for n, m in enumerate(lengths, 1)
  ]


def test_log_probs_that_came_with_the_data_stay_with_their_demonstrations():
  scored = _scored(2, 3, 4)  # the end counts
  given = batches.Demonstrations(
    scored, Characters(), max_tokens=4, overlong="truncate", share=1.0, seed=3
  )
  for _, _, solution, values, *_ in given.take(1, 5):
    letters = int((solution > 0).sum())
    assert values.dtype == np.float32
    assert len(values) == len(solution)
    assert set(values) == {-letters}


def test_log_probs_that_are_set_are_those_of_every_way_to_draw():
  stream = batches.Demonstrations(QUESTIONS, Characters(), max_tokens=20)
  assert all(d.logprobs is None for d in stream.take(0, 7))
  told = [np.full(len(d.solution), -d.id, "f4") for d in stream.examples]
  stream.set_logprobs(told)
  for d in [*stream.take(3, 9), *stream.at([5, 0]), *stream.of(QUESTIONS)]:
    assert d.logprobs is told[d.id]
  with pytest.raises(ValueError, match="shorter"):
    stream.set_logprobs(told[:-1])


def test_log_probs_that_are_too_few_are_refused():
  with pytest.raises(errors.ConfigError, match=r"logprobs .* 2 .* 3 tokens"):
    batches.Demonstrations(
      _scored(2, 2), Characters(), max_tokens=9, share=1.0, seed=0
    )


def test_one_demonstration_without_log_probs_leaves_all_without():
  given = batches.Demonstrations(
    [*_scored(2), _question("q", "s")],
    Characters(),
    max_tokens=9,
    share=1.0,
    seed=0,
  )
  assert [d.logprobs for d in given.examples] == [None, None]


@hypothesis.given(
  sizes=strategies.lists(strategies.integers(1, 5), min_size=3, max_size=4),
  start=strategies.integers(0, 99),
)
def test_several_parts_have_their_shares_from_any_position_on(sizes, start):
  """The first exactly, those that share the rest within one for each part."""
  members = [part for part, size in enumerate(sizes) for _ in range(size)]
  shares = [3, 1, 2, 2][: len(sizes)]
  parts = order.parts(members, shares)
  taken = order.of_parts(parts, start, 240, 7)
  counts = np.bincount(np.array(members)[taken], minlength=len(sizes))
  wanted = 240 * np.array(shares) / sum(shares)
  assert np.abs(counts - wanted).max() <= len(sizes)
  assert abs(counts[0] - wanted[0]) < 1
  np.testing.assert_array_equal(
    order.of_parts(parts, start + 40, 9, 7), taken[40:49]
  )
  for part, size in enumerate(sizes):  # each has all its examples in an epoch
    of_part = taken[np.array(members)[taken] == part]
    assert len(set(of_part[: 2 * size].tolist())) == size
