"""The two losses that every method combines, as objectives of (base, adapter).

An objective takes (base, adapter, batch) and returns (loss, aux); aux holds
arrays with a row per row of the batch, so micro-batches can be put together
again.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias, cast

import jax
import jax.numpy as jnp

from bilevel_jax.bilevel.problem import Objective
from bilevel_jax.objectives import logprobs as logprobs_lib
from bilevel_jax.objectives import (
  policy_gradient,
  prefix_losses,
  sft,
  surrogates,
  token_weights,
)
from bilevel_jax.types import Policy, RLBatch, TokenBatch, Tree

Divergence: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(states [B, K, D], unembedding [D, V], a teacher's states [B, K, D']) -> the
divergence from the teacher at each, [B, K]."""
InContext: TypeAlias = Callable[[jax.Array, jax.Array, TokenBatch], jax.Array]
"""(log-probs [B, T], entropies [B, T], batch) -> values [B, T]."""


def token_logprobs(
  policy: Policy,
  base: Tree,
  adapter: Tree | None,
  batch: TokenBatch,
  *,
  temperature: float,
  chunk: int,
  with_entropy: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
  """Returns log-probs [B, T] of a batch's tokens, and entropies if asked.

  Padding, and what packing leaves out, has log-prob 0: no loss can see what
  was computed there. A batch with a temperature of its own is scored at that.

  Args:
    adapter: its adapter; None: the plain base.
    batch: B rows of T tokens.
    temperature: of the softmax, where the batch has none of its own.
    chunk: positions whose logits are in memory at once.
    with_entropy: also return the entropies in nats, [B, T].
  """
  return token_scores(
    policy,
    base,
    adapter,
    batch,
    temperature=temperature,
    chunk=chunk,
    with_entropy=with_entropy,
  )[:2]


def token_scores(
  policy: Policy,
  base: Tree,
  adapter: Tree | None,
  batch: TokenBatch,
  *,
  temperature: float,
  chunk: int,
  with_entropy: bool = False,
  divergence: Divergence | None = None,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
  """As `token_logprobs`, and each token's divergence from a teacher, [B, T].

  Args:
    batch: with `teacher_states` where there is a divergence.
    divergence: of states from those that the batch has of a teacher.
  """
  unembedding = policy.unembedding(base)
  own = batch.temperature if isinstance(batch, RLBatch) else None
  how = {
    "temperature": temperature if own is None else own,
    "chunk": chunk,
    "with_entropy": with_entropy,
    "rows": policy.rows,
    "without_token": policy.without_token,
  }

  def scores(states, targets, teacher_states):
    found = logprobs_lib.target_logprobs(states, unembedding, targets, **how)
    if divergence is None:
      return *found, None
    return *found, divergence(states, unembedding, teacher_states)

  taught = batch.teacher_states if isinstance(batch, RLBatch) else None
  return _at_tokens(policy, base, adapter, batch, scores, taught)


def token_states(
  policy: Policy, base: Tree, adapter: Tree | None, batch: TokenBatch
) -> jax.Array:
  """Returns [B, T, D] hidden states, of each token that which predicts it.

  0 where no log-prob is wanted, as `token_logprobs`.

  Args:
    batch: B rows of T tokens.
  """
  take = lambda states, targets, _: states
  return _at_tokens(policy, base, adapter, batch, take, None)


def _at_tokens(policy, base, adapter, batch, function, values):
  """What a function makes of the states that predict each token, [B, T, ...].

  0 at padding and at what packing leaves out.

  Args:
    function: (states [R, K, D], targets [R, K], values [R, K, ...] or None) ->
      arrays [R, K, ...].
    values: [B, T, ...] of the tokens, or None.
  """
  if batch.packed is None:
    hidden = policy.hidden(
      base, adapter, batch.tokens, batch.positions, batch.segment_ids
    )
    later = jax.tree.map(lambda x: x[:, 1:], (batch.tokens, values))
    found = function(hidden[:, :-1], *later)
    there = batch.segment_ids > 0
    wide = lambda x: jnp.pad(x, ((0, 0), (1, 0)) + ((0, 0),) * (x.ndim - 2))
    return jax.tree.map(lambda x: _masked(there, wide(x)), found)
  packed = batch.packed
  places = packed.where.shape, packed.targets.shape

  def to_pairs(x):
    count = packed.targets.size
    index = jnp.where(packed.where >= 0, packed.where, count).ravel()
    flat = x.reshape(len(index), *x.shape[2:])
    empty = jnp.zeros((count, *x.shape[2:]), x.dtype)
    placed = empty.at[index].set(flat, mode="drop")
    return placed.reshape(*places[1], *x.shape[2:])

  def micro_batch(inputs):
    packed, values = inputs
    hidden = policy.hidden(
      base,
      adapter,
      packed.tokens,
      packed.positions,
      packed.segment_ids,
      *(() if packed.continuations is None else (packed.continuations,)),
    )
    devices, _ = packed.columns.shape
    hidden = hidden.reshape(devices, -1, hidden.shape[-1])
    states = jnp.take_along_axis(hidden, packed.columns[..., None], axis=1)
    return function(states, packed.targets, values)

  rows = dataclasses.replace(packed, where=None, used=None)
  found = jax.lax.map(micro_batch, (rows, jax.tree.map(to_pairs, values)))
  computed = packed.where >= 0
  flat = lambda x: x.reshape(-1, *x.shape[3:])
  return jax.tree.map(lambda x: _masked(computed, flat(x)[packed.where]), found)


def _masked(there: jax.Array, x: jax.Array) -> jax.Array:
  """x [B, T, ...] where it is there, [B, T], and 0 elsewhere."""
  return jnp.where(there.reshape(*there.shape, *(1,) * (x.ndim - 2)), x, 0.0)


def sft_objective(
  policy: Policy,
  *,
  chunk: int,
  token_weight: token_weights.TokenWeight = token_weights.one,
  context: InContext | None = None,
  with_entropy: bool = False,
) -> Objective:
  """Returns minus J_SFT: the weighted negative log-likelihood of a batch.

  Aux, each [B, T]: logprobs; entropies, or None; token_weights.

  Args:
    chunk: positions whose logits are in memory at once.
    token_weight: what a token's probability adds to its weight.
    context: what everything else does, the row's other tokens for one.
    with_entropy: whether `context` is given entropies; else zeros.
  """

  def objective(base: Tree, adapter: Tree, batch: TokenBatch):
    logprobs, entropies = token_logprobs(
      policy,
      base,
      adapter,
      batch,
      temperature=1.0,
      chunk=chunk,
      with_entropy=with_entropy,
    )
    # How likely a token is now is data: only its log-prob is descended.
    now = jax.lax.stop_gradient(logprobs)
    aux = {
      "logprobs": now,
      "entropies": jax.lax.stop_gradient(entropies),
      "token_weights": token_weight(now),
    }
    weights = batch.weights * aux["token_weights"]
    if context is not None:
      given = jnp.zeros_like(now) if entropies is None else aux["entropies"]
      weights *= context(now, given, batch)
    return sft.negative_log_likelihood(logprobs, weights), aux

  return objective


def rl_objective(
  policy: Policy,
  *,
  numbers: policy_gradient.PolicyGradient,
  temperature: float,
  chunk: int,
  surrogate: Literal["fixed_sample", "dice"] = "fixed_sample",
  ratio: Literal["token", "sequence"] = "token",
  clip: Literal["objective", "weight"] = "objective",
  kl_estimate: policy_gradient.KLEstimate = "k3",
  prefix_loss: prefix_losses.PrefixLoss = prefix_losses.nothing,
  advantages: InContext | None = None,
  divergence: Divergence | None = None,
  with_entropy: bool = True,
) -> Objective:
  """Returns minus J_RL: a policy-gradient loss plus KL to the start.

  Aux: logprobs, entropies (or None), clipped and truncated, each [B, T]. A
  batch without `old_logprobs` is on policy: its ratio is 1, taken against its
  own stopped log-probs. One without `ref_logprobs` has no KL term.

  `fixed_sample` is GRPO's: the clipped token ratio. Its gradient is right and
  its second derivatives are not, for they take the samples to be fixed.
  `dice` has the same gradient on policy and every derivative of J_RL and of
  the KL, without a clip, with a variance that grows with the length
  (`objectives.surrogates`).

  Args:
    numbers: `kl_coef` weighs the KL term; each token's loss is multiplied by
      min(old / sampler, importance_cap), a constant, where the batch has
      `sampler_logprobs`. `dice` has no clip, and only `clip` "objective" a
      dual one.
    temperature: of the rollouts; log-probs are of the tempered policy.
    chunk: positions whose logits are in memory at once.
    ratio: of each token, or of its sequence (GSPO); not of `dice`.
    clip: what the ratio's bounds are put on: PPO's objective, or the weight of
      grad log pi (CISPO); not of `dice`.
    kl_estimate: a loss of each token, k3 (GRPO) or k2, or "reward": each
      token's advantage loses `kl_coef` times the sum of log pi - log ref from
      it on. `dice` needs one whose mean is KL(pi || ref), which k2's is not.
      Losses of tokens that another policy sampled are multiplied by the ratio
      to it, at most `numbers.dual_clip`, a constant.
    prefix_loss: of the tokens that were given and not sampled, in place of all
      of this.
    advantages: in place of the batch's.
    divergence: from a teacher, of batches with `teacher_states`; a token's loss
      has it times its row's `teacher_weights`.
    with_entropy: also compute the entropies, a number to log, where neither
      `prefix_loss` nor `advantages` may read them.
  """
  surrogates_by_clip = {
    "objective": policy_gradient.clipped_surrogate,
    "weight": policy_gradient.clipped_weight,
  }
  kl_losses = {
    "k3": policy_gradient.kl_k3,
    "k2": policy_gradient.kl_k2,
    "reward": jnp.subtract,
  }
  # Dice differentiates the mean of log pi - log ref itself.
  in_reward = kl_estimate == "reward" and surrogate != "dice"

  def objective(base: Tree, adapter: Tree, batch: RLBatch):
    logprobs, entropies, divergences = token_scores(
      policy,
      base,
      adapter,
      batch,
      temperature=temperature,
      chunk=chunk,
      with_entropy=with_entropy
      or batch.prefixed is not None
      or advantages is not None,
      divergence=divergence,
    )
    now, entropy = jax.lax.stop_gradient(logprobs), cast(jax.Array, entropies)
    values = batch.advantages
    if advantages is not None:
      values = advantages(now, entropy, batch)
    old_logprobs = now if batch.old_logprobs is None else batch.old_logprobs
    sampled = batch.weights > 0
    if batch.prefixed is not None:
      sampled &= batch.prefixed == 0
    if surrogate == "dice":
      clipped = jnp.zeros(logprobs.shape, bool)
      losses = -surrogates.dice(logprobs, values, sampled, old_logprobs)
      cost = lambda costs: surrogates.dice_cost(
        logprobs, costs, sampled, old_logprobs
      )
    else:
      sequences = sampled if ratio == "sequence" else None
      if in_reward and batch.ref_logprobs is not None:
        values = values - numbers.kl_coef * policy_gradient.kl_to_go(
          now, batch.ref_logprobs, sampled
        )
      losses, clipped = surrogates_by_clip[clip](
        logprobs,
        old_logprobs,
        values,
        numbers,
        sequences=sequences,
      )
      cost = lambda costs: costs
      if batch.sampled_by_another:
        r = policy_gradient.ratio(now, old_logprobs, numbers, sequences)
        if numbers.dual_clip is not None:
          r = jnp.minimum(r, numbers.dual_clip)
        cost = lambda costs: costs * r
    surrogate_losses, truncated = losses, jnp.zeros(logprobs.shape, bool)
    cap = numbers.importance_cap
    if cap is not None and batch.sampler_logprobs is not None:
      correction, truncated = policy_gradient.truncated_importance(
        old_logprobs, batch.sampler_logprobs, cap=cap
      )
      losses *= correction
    if batch.ref_logprobs is not None and not in_reward:
      kl = kl_losses[kl_estimate](logprobs, batch.ref_logprobs)
      if (bound := numbers.kl_bound) is not None:
        kl = jnp.clip(kl, -bound, bound)
      losses += numbers.kl_coef * cost(kl)
    if divergences is not None and batch.teacher_weights is not None:
      losses += batch.teacher_weights[:, None] * divergences
    if batch.prefixed is not None:
      of_prefix = prefix_loss(logprobs, surrogate_losses, entropy, batch)
      losses = jnp.where(batch.prefixed > 0, of_prefix, losses)
    aux = {
      "logprobs": now,
      "entropies": entropies,
      "clipped": clipped,
      "truncated": truncated,
    }
    return jnp.sum(batch.weights * losses), aux

  return objective
