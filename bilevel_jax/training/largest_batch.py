"""Shapes of the largest batch that an update may see; nothing is computed."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel_jax import config
from bilevel_jax.methods import contract
from bilevel_jax.rollout import packing, sizes
from bilevel_jax.training import learner, sharding
from bilevel_jax.types import (
  PackedRows,
  RLBatch,
  StepBatch,
  Taught,
  TokenBatch,
)


def abstract_batch(
  settings: config.Config, method: contract.Method, mesh: sharding.Mesh
) -> StepBatch:
  """Returns the shapes of the largest batch that an update may see."""
  rl, sft, teacher = None, None, None
  for batch in parts(settings, method, mesh):
    if isinstance(batch, RLBatch):
      rl = batch
    elif isinstance(batch, Taught):
      teacher = batch
    else:
      sft = batch
  return StepBatch(rl=rl, sft=sft, teacher=teacher)


def parts(
  settings: config.Config, method: contract.Method, mesh: sharding.Mesh
) -> list[TokenBatch]:
  """Returns its batches of sequences, as ShapeDtypeStructs."""
  data, rollout = settings.data, settings.rollout
  updates, needs = settings.updates_per_step, method.needs
  how = learner.how_to_pack(settings, mesh)
  found: list[TokenBatch] = []
  if needs.rollouts:
    samples = data.prompts_per_step * rollout.samples_per_prompt
    rows = samples // settings.rl.updates_per_rollout
    longest = data.max_prompt_tokens + rollout.max_new_tokens
    fields, row = _token_batch(rows, longest, how, mesh)
    wide = fields["weights"]
    found.append(
      RLBatch(
        **fields,
        advantages=wide,
        rewards=row,
        baselines=row,
        scored=row,
        sampler_logprobs=wide,
        old_logprobs=wide,
        ref_logprobs=wide
        if settings.rl.kl_coef > 0 or needs.reference == "own"
        else None,
        expert_logprobs=wide if needs.expert == "rollouts" else None,
        questions=_shape(row.shape, jnp.int32, row.sharding),
        correct=row,
        accuracy=row,
      )
    )
    if needs.teacher is not None:
      longest += data.max_demonstration_tokens
      places = fields["tokens"]
      fields, _ = _token_batch(rows, longest, how, mesh)
      found.append(Taught(**fields, places=places))
  if needs.demonstrations and needs.teacher is None:
    rows = max(1, data.demonstrations_per_step // updates)
    if needs.own_demonstrations:
      rows = -(-data.prompts_per_step // settings.rl.updates_per_rollout)
    fields, row = _token_batch(rows, data.max_demonstration_tokens, how, mesh)
    found.append(
      TokenBatch(
        **fields,
        ids=_shape(row.shape, jnp.int32, row.sharding),
        expert_logprobs=fields["weights"]
        if needs.expert == "demonstrations"
        else None,
        group_advantages=_shape((*row.shape, 1), row.dtype, row.sharding)
        if needs.own_demonstrations
        else None,
      )
    )
  return found


def _shape(shape: tuple[int, ...], dtype: Any, place: Any) -> Any:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def _token_batch(
  rows: int, longest: int, how: packing.Packing, mesh: sharding.Mesh
) -> tuple[dict[str, Any], Any]:
  """The fields of a TokenBatch, and an array with a number per row."""
  width = sizes.columns(longest)
  columns = max(width, how.row_tokens)
  per_pass, passes = packing.forward_passes(rows, rows, columns, how)

  def shape(*sizes: int, dtype: Any = jnp.int32) -> Any:
    place = sharding.batch_place(len(sizes), mesh)
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

  where = shape(rows, width)
  computed = shape(passes, per_pass, columns)
  on_device = per_pass // how.row_multiple * columns
  scored = shape(passes, how.row_multiple, how.log_probs(on_device, on_device))
  return {
    "tokens": where,
    "positions": where,
    "segment_ids": where,
    "weights": shape(rows, width, dtype=jnp.float32),
    "packed": PackedRows(
      tokens=computed,
      positions=computed,
      segment_ids=computed,
      continuations=computed if how.several else None,
      columns=scored,
      targets=scored,
      where=where,
      used=shape(),
    ),
  }, shape(rows, dtype=jnp.float32)
