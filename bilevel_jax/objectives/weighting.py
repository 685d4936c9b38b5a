"""Weights that turn per-token losses into one loss: `sum(weights * loss)`.

They are made once, over the global batch, so a loss may be split over
micro-batches, devices and processes in any way and added up again. A mean of
means over micro-batches is a different, wrong number as soon as lengths
differ (arXiv 2604.23747 found it in widely used SFT baselines).
"""

from collections.abc import Callable

from bilevel_jax.types import Array

Weighting = Callable[[Array], Array]


def token_mean(mask: Array) -> Array:
  """Returns weights under which every token of the batch counts the same.

  w = m / sum(m). All zero where the mask is.

  Args:
    mask: [B, T], 1 on the tokens that count.
  """
  return mask / mask.sum().clip(min=1)


def sequence_mean(mask: Array) -> Array:
  """Returns weights under which every row counts the same.

  w = m / length of its row / number of rows that are not empty, as in GRPO's
  first form (DeepSeekMath, arXiv 2402.03300).

  Args:
    mask: [B, T], 1 on the tokens that count.
  """
  lengths = mask.sum(axis=1, keepdims=True)
  rows = (lengths > 0).sum().clip(min=1)
  return mask / lengths.clip(min=1) / rows


def constant(divisor: float) -> Weighting:
  """Returns a weighting of m / (rows * divisor), as in Dr. GRPO.

  Source: arXiv 2503.20783, where the divisor is the longest completion
  allowed, so that a token's weight depends on no sampled length.
  """

  def weights(mask: Array) -> Array:
    rows = (mask.sum(axis=1) > 0).sum().clip(min=1)
    return mask / (rows * divisor)

  return weights


def build(name: str, longest: int) -> Weighting:
  """Returns the weighting of that name; `longest` is constant's divisor."""
  return {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "constant": constant(longest),
  }[name]
