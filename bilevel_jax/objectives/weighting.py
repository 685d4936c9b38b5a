"""Weights that turn per-token losses into one loss: `sum(weights * loss)`.

They are made once, over the global batch, so a loss may be split over
micro-batches, devices and processes in any way and added up again. A mean of
means over micro-batches is a different, wrong number as soon as lengths
differ (arXiv 2604.23747 found it in widely used SFT baselines).
"""

from collections.abc import Callable

import numpy as np

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


def as_one_batch(
  samples: np.ndarray,
  demonstrations: np.ndarray,
  *,
  rl: Weighting,
  sft: Weighting,
) -> tuple[float, float]:
  """Returns what makes demonstrations further rows of the rollouts' batch.

  Two losses, of samples weighted by `rl` and of demonstrations by `sft`, times
  these, weigh together as `rl` weighs one batch of both; token by token, but
  where `sft` spreads its weight over rows otherwise than `rl` does.

  Args:
    samples: [N] int, tokens of each that count; 0: the row does not.
    demonstrations: [D] int, the same.
  """
  lengths = np.concatenate([samples, demonstrations])
  columns = np.arange(lengths.max(initial=0))
  mask = (columns < lengths[:, None]).astype(np.float32)
  both, first = rl(mask), len(samples)

  def factor(rows: slice, alone: Weighting) -> float:
    return float(both[rows].sum() / alone(mask[rows]).sum().clip(min=1e-12))

  return factor(slice(first), rl), factor(slice(first, None), sft)


def build(name: str, longest: int) -> Weighting:
  """Returns the weighting of that name; `longest` is constant's divisor."""
  return {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "constant": constant(longest),
  }[name]
