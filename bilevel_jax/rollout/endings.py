"""What ends a completion on the host: stop strings, and a total budget.

Both cut a completion that the device would have gone on with, and both are
defined on finished completions, so that they do not depend on when the host
looks at them.
"""

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from bilevel_jax import types

Decode = Callable[[Sequence[int]], str]
_STOP, _LENGTH = map(types.FINISH_REASONS.index, ("stop", "length"))


def stopped_at(
  tokens: np.ndarray, known: int, stop: Sequence[str], decode: Decode
) -> int | None:
  """Returns the fewest tokens whose text holds a stop string, None if none do.

  The text is that of all the tokens, so a stop string may span several, and
  may begin or end inside one. A longer completion is taken to have a longer
  text, as with every tokenizer that leaves spaces alone: only an unfinished
  character at its end may still change.

  Args:
    tokens: [n] int32, of one completion.
    known: so many of them are known to hold none.
  """

  def holds(count: int) -> bool:
    text = decode(tokens[:count].tolist())
    return any(string in text for string in stop)

  if not holds(len(tokens)):
    return None
  return bisect.bisect_left(
    range(len(tokens)), True, lo=min(known + 1, len(tokens)), key=holds
  )


def begin(rollout: types.Rollout, decode: Decode | None) -> None:
  """Writes what completions begin with, and ends those that are whole by it."""
  requests = rollout.requests
  budgets = requests.budgets[rollout.prompt_index]
  for n, prefix in enumerate(requests.prefixes or ()):
    ends = np.flatnonzero(np.isin(prefix, requests.eos_ids))[:1] + 1
    length = int(min([len(prefix), budgets[n], *ends]))
    if length == budgets[n]:
      rollout.finish_reasons[n] = _LENGTH
    if length in ends:
      rollout.finish_reasons[n] = _STOP
    if requests.stop and decode is not None:
      cut_at = stopped_at(prefix[:length], 0, requests.stop, decode)
      if cut_at is not None:
        length, rollout.finish_reasons[n] = cut_at, _STOP
    rollout.tokens[n, :length] = prefix[:length]
    rollout.lengths[n] = length


def common_budget(lengths: np.ndarray, total: int, most: int) -> int:
  """Returns the greatest t <= most with sum(min(lengths, t)) <= total.

  Lengths only grow while rows are decoded, so the budget only shrinks: what
  it is of unfinished completions is a bound of what it will be.

  Args:
    lengths: [N] int, tokens of each completion.
    total: tokens that all may have together.
  """
  if lengths.sum() <= total:
    return most
  counts = np.bincount(lengths)
  at_least = counts[::-1].cumsum()[::-1][1:]  # rows with a t-th token
  return int(np.searchsorted(at_least.cumsum(), total, side="right"))


def cut(
  rollout: types.Rollout, rows: int | np.ndarray, length: int, reason: int
) -> None:
  """Shortens completions in place.

  Args:
    rows: [...], indices of completions, or one.
  """
  rollout.tokens[rows, length:] = 0
  rollout.logprobs[rows, length:] = 0
  rollout.lengths[rows] = length
  rollout.finish_reasons[rows] = reason
