"""From ragged host data to rectangular batches: rollouts and demonstrations.

Rows are right-padded: prompt, then completion, then zeros. Masks come from
lengths, never from token values, so it does not matter what the pad id is.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bilevel_jax.objectives import policy_gradient
from bilevel_jax.objectives.weighting import Weighting
from bilevel_jax.rollout import sizes
from bilevel_jax.types import (
  Array,
  Demonstration,
  RLBatch,
  Rollout,
  Scores,
  Taught,
  TokenBatch,
)


def token_batch(
  pairs: list[tuple[np.ndarray, np.ndarray]],
  weighting: Weighting,
  *,
  rows: int | None = None,
  columns: int | None = None,
) -> TokenBatch:
  """Returns (prompt, completion) pairs as rows that weigh completions only.

  Args:
    pairs: int32 token ids of prompts and completions, each [tokens].
    weighting: [B, T] mask of completions -> weights.
    rows: rows to pad to with empty ones; default: as many as pairs.
    columns: columns to pad to; default: `sizes.columns` of the longest row.

  Raises:
    ValueError: pairs that do not fit the rows and columns.
  """
  rows = len(pairs) if rows is None else rows
  longest = max((len(p) + len(c) for p, c in pairs), default=1)
  columns = sizes.columns(longest) if columns is None else columns
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


def demonstration_batch(
  demonstrations: Sequence[Demonstration],
  weighting: Weighting,
  *,
  rows: int | None = None,
  columns: int | None = None,
  coefficients: np.ndarray | None = None,
  group_advantages: np.ndarray | None = None,
  with_logprobs: bool = False,
) -> TokenBatch:
  """Returns demonstrations as rows that weigh their solutions only.

  Where a demonstration has weights of its tokens, those above 0 are counted,
  and what the weighting gives them is multiplied by theirs.

  Args:
    weighting: [B, T] mask of solutions -> weights.
    coefficients: [n], what each row's weights are multiplied by, beside its
      demonstration's own weight; None: 1.
    group_advantages: [n], as TokenBatch has them; None: none.
    with_logprobs: whether the batch has the demonstrations' own log-probs, as
      `expert_logprobs`.
  """
  given = {
    row: d.token_weights[: len(d.prompt) + len(d.solution)]
    for row, d in enumerate(demonstrations)
    if d.token_weights is not None
  }

  def of_turns(mask: Array) -> Array:
    mask = np.array(mask)
    for row, values in given.items():
      mask[row, 1 : len(values)] = values[1:] > 0
    return weighting(mask)

  batch = token_batch(
    [(d.prompt, d.solution) for d in demonstrations],
    of_turns if given else weighting,
    rows=rows,
    columns=columns,
  )
  for row, values in given.items():
    np.asarray(batch.weights)[row, : len(values)] *= values
  count, shape = len(demonstrations), batch.tokens.shape

  def column(values: np.ndarray | Sequence[float]) -> np.ndarray:
    out = np.zeros((shape[0], 1), np.float32)
    out[:count, 0] = values
    return out

  ids = np.zeros(shape[0], np.int32)
  ids[:count] = [d.id for d in demonstrations]
  logprobs = None
  if with_logprobs:
    logprobs = np.zeros(shape, np.float32)
    for row, d in enumerate(demonstrations):
      assert d.logprobs is not None
      first = len(d.prompt)
      logprobs[row, first : first + len(d.logprobs)] = d.logprobs
  weights = batch.weights * column([d.weight for d in demonstrations])
  if coefficients is not None:
    weights = weights * column(coefficients)
  return dataclasses.replace(
    batch,
    weights=weights,
    ids=ids,
    expert_logprobs=logprobs,
    group_advantages=None
    if group_advantages is None
    else column(group_advantages),
  )


def minibatches(
  rollout: Rollout,
  scores: Scores,
  weighting: Weighting,
  *,
  normalise: policy_gradient.Advantage,
  advantages: np.ndarray | None = None,
  counted: np.ndarray | None = None,
  skipped: np.ndarray | None = None,
  given_apart: bool = False,
  updates: int = 1,
  passes: int = 1,
  seed: Sequence[int] = (0,),
  columns: int | None = None,
) -> list[RLBatch]:
  """Returns a step's rollouts as the batches of its updates.

  Args:
    rollout: N completions, G of each prompt.
    weighting: [B, T] mask of completions -> weights.
    advantages: [N], in place of those.
    counted: [N] bool, what has weight, once advantages are known; None: all.
    skipped: [N] int, tokens at a completion's start that have no weight; None:
      those that were given.
    given_apart: whether given tokens are weighted among themselves, so that
      what was sampled weighs the same whatever was given.
    updates: mini-batches of a pass, of N / updates rows each.
    passes: times that the rollouts are gone through.
    seed: of the order of rows; used where there is more than one batch.
    columns: columns to pad to; default: `sizes.columns` of the longest row.
  """
  groups = (-1, rollout.requests.samples_per_prompt)
  of_groups, baselines = policy_gradient.group_advantages(
    scores.rewards.reshape(groups),
    (scores.scored & (rollout.lengths > 0)).reshape(groups),
    (rollout.lengths - rollout.prefix_lengths).reshape(groups),
    normalise=normalise,
  )
  if advantages is None:
    advantages = of_groups.ravel()
  if counted is not None:
    scores = dataclasses.replace(scores, scored=scores.scored & counted)
  total = len(rollout.tokens)
  prompt_lengths = [len(prompt) for prompt in rollout.requests.prompts]
  lengths = np.array(prompt_lengths)[rollout.prompt_index] + rollout.lengths
  return [
    _rl_batch(
      rollout,
      scores,
      advantages,
      baselines.ravel(),
      weighting,
      skipped=rollout.prefix_lengths if skipped is None else skipped,
      given_apart=given_apart,
      selected=selected,
      columns=columns or sizes.columns(int(lengths.max())),
    )
    for selected in _selections(total, updates, passes, seed)
  ]


def _selections(
  total: int, updates: int, passes: int, seed: Sequence[int]
) -> list[np.ndarray]:
  """The rows of each batch of a step."""
  found: list[np.ndarray] = []
  for number in range(passes):
    order = np.arange(total)
    if updates * passes > 1:
      order = np.random.default_rng([*seed, number]).permutation(total)
    found += np.split(order, updates)
  return found


def taught(
  rollout: Rollout,
  prompts: Sequence[np.ndarray],
  *,
  updates: int = 1,
  passes: int = 1,
  seed: Sequence[int] = (0,),
  columns: int,
) -> list[Taught]:
  """Returns the completions of each batch of `minibatches` after other prompts.

  Args:
    prompts: [P] of int32 [n]; empty: its question has no teacher.
    columns: of the batches of `minibatches`, not of these.
  """
  found = []
  for selected in _selections(len(rollout.tokens), updates, passes, seed):
    pairs = []
    places = np.full((len(selected), columns), -1, np.int32)
    for row, n in enumerate(selected):
      question = int(rollout.prompt_index[n])
      prompt = prompts[question]
      length = int(rollout.lengths[n]) * bool(len(prompt))
      pairs.append((prompt, rollout.tokens[n, :length]))
      start = len(rollout.requests.prompts[question])
      places[row, start : start + length] = len(prompt) + np.arange(length)
    found.append(
      Taught(**vars(token_batch(pairs, lambda mask: mask)), places=places)
    )
  return found


def _rl_batch(
  rollout: Rollout,
  scores: Scores,
  advantages: np.ndarray,
  baselines: np.ndarray,
  weighting: Weighting,
  *,
  skipped: np.ndarray,
  given_apart: bool,
  selected: np.ndarray,
  columns: int,
) -> RLBatch:
  """The selected of N completions as a batch for a policy-gradient loss.

  A row that could not be scored keeps its tokens and gets no weight.
  """
  prompts = [rollout.requests.prompts[i] for i in rollout.prompt_index]
  scored = scores.scored & (rollout.lengths > 0)
  groups = (-1, rollout.requests.samples_per_prompt)
  right = (scores.correct & scored).reshape(groups).sum(axis=1)
  accuracy = right / scored.reshape(groups).sum(axis=1).clip(min=1)
  lengths = rollout.prefix_lengths
  of_rows = lambda values: values[selected].astype(np.float32)

  def split(n: int) -> tuple[np.ndarray, np.ndarray]:
    completion = rollout.tokens[n, : rollout.lengths[n]]
    before = np.concatenate([prompts[n], completion[: skipped[n]]])
    return before, completion[skipped[n] :]

  shape = len(selected), columns
  sampler_logprobs, prefixed = np.zeros((2, *shape), np.float32)
  for row, n in enumerate(selected):
    start, length = len(prompts[n]), rollout.lengths[n]
    sampler_logprobs[row, start : start + length] = rollout.logprobs[n, :length]
    prefixed[row, start : start + lengths[n]] = 1.0

  def weigh(mask: Array) -> Array:
    mask = mask * of_rows(scored)[:, None]
    if not given_apart:
      return weighting(mask)
    return weighting(mask * (1 - prefixed)) + weighting(mask * prefixed)

  plain = token_batch([split(n) for n in selected], weigh, columns=columns)
  return RLBatch(
    **vars(plain),
    advantages=of_rows(advantages)[:, None] * np.float32(plain.weights > 0),
    rewards=of_rows(np.where(scored, scores.rewards, 0.0)),
    baselines=of_rows(baselines),
    scored=of_rows(scored),
    sampler_logprobs=sampler_logprobs,
    old_logprobs=None,
    ref_logprobs=None,
    prefixed=None if rollout.requests.prefixes is None else prefixed,
    questions=rollout.prompt_index[selected],
    correct=of_rows(scores.correct),
    accuracy=of_rows(accuracy[rollout.prompt_index]),
  )


def skip_idle(batch: RLBatch) -> RLBatch:
  """Returns the batch without weight on rows that have no advantage.

  Their policy-gradient loss has no gradient, and what they counted for in the
  other rows' weights stays.

  Args:
    batch: rows with their final weights.
  """
  busy = np.any(batch.advantages != 0, axis=1, keepdims=True)
  return dataclasses.replace(batch, weights=batch.weights * busy)
