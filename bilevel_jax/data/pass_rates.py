"""Pass rates of questions: how often a policy was right, as a file has them."""

import math
from collections.abc import Sequence

from bilevel_jax import errors, types
from bilevel_jax.data import demonstration_weights


def of_file(questions: Sequence[types.Question], path: str) -> list[float]:
  """Returns the pass rate of each question, in [0, 1].

  Args:
    path: JSONL, as `bilevel_jax.difficulty` writes it.

  Raises:
    ConfigError: as `demonstration_weights.numbers`.
  """
  return demonstration_weights.numbers(
    questions, path, field="pass_rate", kind="question", most=1.0
  )


def bounds(text: str) -> tuple[float, float]:
  """Returns the least and the most of a text LEAST..MOST.

  Raises:
    ConfigError: it is none, or not within 0..1.
  """
  least, _, most = text.partition("..")
  try:
    found = float(least), float(most)
  except ValueError:
    found = math.nan, math.nan
  if not 0 <= found[0] <= found[1] <= 1:
    raise errors.ConfigError(
      f"data.keep must be two shares with .. between, as 0.1..0.9, got {text!r}"
    )
  return found
