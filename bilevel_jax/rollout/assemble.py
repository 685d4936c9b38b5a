"""From ragged host data to rectangular batches: rollouts and demonstrations.

Rows are right-padded: prompt, then completion, then zeros. Masks come from
lengths, never from token values, so it does not matter what the pad id is.
"""

import dataclasses

import numpy as np

from bilevel_jax.objectives.weighting import Weighting
from bilevel_jax.types import RLBatch, Rollout, Scores, TokenBatch


def token_batch(
  pairs: list[tuple[np.ndarray, np.ndarray]],
  weighting: Weighting,
  *,
  rows: int | None = None,
  columns: int | None = None,
) -> TokenBatch:
  """Returns (prompt, completion) pairs as rows that weigh completions only.

  Args:
    pairs: int32 token ids of prompts and completions.
    weighting: [B, T] mask of completions -> weights.
    rows: rows to pad to with empty ones; default: as many as pairs.
    columns: columns to pad to; default: the bucket of the longest row.
  """
  rows = len(pairs) if rows is None else rows
  longest = max((len(p) + len(c) for p, c in pairs), default=1)
  columns = bucket(longest) if columns is None else columns
  if longest > columns or len(pairs) > rows:
    raise ValueError(
      f"{len(pairs)} rows of up to {longest} tokens do not fit {rows} rows of "
      f"{columns}"
    )
  tokens = np.zeros((rows, columns), np.int32)
  mask = np.zeros((rows, columns), np.float32)
  segment_ids = np.zeros((rows, columns), np.int32)
  for row, (prompt, completion) in enumerate(pairs):
    end = len(prompt) + len(completion)
    tokens[row, :end] = np.concatenate([prompt, completion])
    mask[row, len(prompt) : end] = 1.0
    segment_ids[row, :end] = 1
  # Nothing precedes column 0, so nothing there can be predicted.
  mask[:, 0] = 0.0
  positions = np.arange(columns, dtype=np.int32) * segment_ids
  return TokenBatch(
    tokens=tokens,
    positions=positions,
    segment_ids=segment_ids,
    weights=weighting(mask).astype(np.float32),
  )


def rl_batch(
  rollout: Rollout,
  scores: Scores,
  advantages: np.ndarray,
  baselines: np.ndarray,
  weighting: Weighting,
  *,
  selected: np.ndarray | None = None,
  columns: int | None = None,
) -> RLBatch:
  """Returns sampled completions as a batch for a policy-gradient loss.

  A row that could not be scored keeps its tokens and gets no weight.

  Args:
    rollout: N completions.
    scores: their rewards.
    advantages: [N].
    baselines: [N].
    weighting: [B, T] mask of completions -> weights.
    selected: [B] indices of the rows to take; default: all.
    columns: columns to pad to; default: the bucket of the longest row.
  """
  selected = np.arange(len(rollout.tokens)) if selected is None else selected
  prompts = [rollout.requests.prompts[i] for i in rollout.prompt_index]
  scored = scores.scored & (rollout.lengths > 0)

  def counting(mask: np.ndarray) -> np.ndarray:
    return weighting(mask * scored[selected, None])

  plain = token_batch(
    [(prompts[n], rollout.tokens[n, : rollout.lengths[n]]) for n in selected],
    counting,
    columns=columns,
  )
  sampler_logprobs = np.zeros(plain.tokens.shape, np.float32)
  for row, n in enumerate(selected):
    start, length = len(prompts[n]), rollout.lengths[n]
    sampler_logprobs[row, start : start + length] = rollout.logprobs[n, :length]
  counted = (plain.weights > 0).astype(np.float32)
  return RLBatch(
    **{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)},
    advantages=advantages[selected, None].astype(np.float32) * counted,
    rewards=np.where(scored, scores.rewards, 0.0)[selected].astype(np.float32),
    baselines=baselines[selected].astype(np.float32),
    scored=scored[selected].astype(np.float32),
    sampler_logprobs=sampler_logprobs,
    old_logprobs=None,
    ref_logprobs=None,
  )


def bucket(length: int) -> int:
  """Returns the padded length: few distinct ones, so few compilations.

  The next multiple of an eighth of the next power of two, and of 16 at
  least: padding is at most an eighth beyond 128 tokens.
  """
  step = max(16, 1 << max(0, (length - 1).bit_length() - 3))
  return -(-length // step) * step
