"""What a run holds in the memory of each device, term by term, beforehand.

Three things happen in turn: generation, and the update at two moments (the
unembedding's backward pass, a layer's). What is resident is there all the
time. All of it follows from shapes: nothing is computed and nothing compiled.
docs/memory_and_meshes.md has the formulas; `compiled_update` asks a compiler,
whose word of the update counts where there is one.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel_jax import config
from bilevel_jax.methods import contract
from bilevel_jax.models import presets
from bilevel_jax.rollout import cache, engine, packing, sizes
from bilevel_jax.training import learner, sharding, sources
from bilevel_jax.types import (
  PackedRows,
  Policy,
  RLBatch,
  StepBatch,
  TokenBatch,
  TrainState,
  Tree,
)

_GIB = 2**30


class Plan(NamedTuple):
  """Bytes on one device, by what they are for."""

  resident: dict[str, int]  # at every moment
  generation: dict[str, int]
  update: dict[str, int]  # where a layer is gone back through
  unembedding: dict[str, int]  # where the log-probs are
  compiled: int | None = None  # the update's program, by the compiler

  def moments(self) -> dict[str, int]:
    """Bytes at each of the moments, what is resident included."""
    always = sum(self.resident.values())
    return {
      "generation": always + sum(self.generation.values()),
      "update": self.update_program + self.resident.get("reference", 0),
    }

  @property
  def update_program(self) -> int:
    """Bytes of the update's own program, which does not see the reference."""
    if self.compiled is not None:
      return self.compiled
    always = sum(self.resident.values()) - self.resident.get("reference", 0)
    return always + max(
      sum(self.update.values()), sum(self.unembedding.values())
    )

  @property
  def peak(self) -> int:
    """Most bytes at any moment."""
    return max(self.moments().values())


class _Pass(NamedTuple):
  """What of a forward pass is on one device."""

  rows: int
  columns: int


def plan(
  settings: config.Config,
  architecture: presets.Architecture,
  mesh: sharding.Mesh,
  device_bytes: float | None = None,
) -> Plan:
  """Returns what a run would hold on each device of a mesh.

  Args:
    mesh: with the axes of `sharding`; an AbstractMesh will do.
    device_bytes: memory of a device, which bounds the KV cache as in a run:
      rows that it does not hold at once are sampled in several waves.

  Raises:
    ConfigError: a mesh that does not divide the parameters, or settings that
      contradict each other.
  """
  policy = sources.build_policy(settings, architecture)
  method = learner.build_method(settings, policy)
  state = learner.abstract_state(method, policy)
  places = sharding.state_shardings(state, mesh, method.placement)
  resident = {
    "base": _bytes(state.base, places.base),
    "adapter": _bytes(state.adapter, places.adapter),
    "RL-only base": _bytes(state.rl_only_base, places.rl_only_base),
    "optimiser states": _bytes(state.optimizer_states, places.optimizer_states),
    "the method's own": _bytes(state.extra, places.extra),
  }
  dtype = learner.reference_dtype(settings)
  if (
    dtype is not None
    and method.needs.reference == "start"
    and method.needs.rollouts
  ):
    reference = _cast(state.base, dtype)
    resident["reference"] = _bytes(reference, places.base)
  update, unembedding = _update(settings, architecture, mesh, method, state)
  return Plan(
    {name: n for name, n in resident.items() if n},
    _generation(
      settings,
      policy,
      mesh,
      state,
      places.base,
      None if device_bytes is None else device_bytes - sum(resident.values()),
    )
    if method.needs.rollouts
    else {},
    update,
    unembedding,
  )


def table(plan: Plan) -> str:
  """Returns the terms of a plan in GiB, a line each."""
  lines = []

  def add(title: str, terms: dict[str, int]) -> None:
    lines.append(f"  {title:38}{sum(terms.values()) / _GIB:9.2f} GiB")
    lines.extend(
      f"    {name:36}{size / _GIB:9.2f}" for name, size in terms.items()
    )

  add("always", plan.resident)
  if plan.generation:
    add("while sampling", plan.generation)
  add("while updating, in a layer", plan.update)
  add("while updating, in the unembedding", plan.unembedding)
  if plan.compiled is not None:
    lines.append(
      f"  {'the update, by the compiler':38}{plan.compiled / _GIB:9.2f} GiB"
    )
  for moment, size in plan.moments().items():
    lines.append(
      f"  {moment + ', with what is always there':38}{size / _GIB:9.2f} GiB"
    )
  return "\n".join(lines)


def _generation(
  settings: config.Config,
  policy: Policy,
  mesh: sharding.Mesh,
  state: TrainState,
  places: Tree,
  free: float | None,
) -> dict[str, int]:
  """The sampler's own: merged weights, a cache of the rows, logits."""
  rollout = settings.rollout
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  wanted = settings.data.prompts_per_step * rollout.samples_per_prompt
  rows = -(-min(wanted, rollout.max_rows) // shards)
  columns = engine.cache_columns(
    settings.data.max_prompt_tokens, rollout.max_new_tokens
  )
  a_row = cache.bytes_per_row(policy, columns)
  at_most = rollout.kv_cache_bytes or (
    math.inf if free is None else cache.SHARE_OF_FREE * free
  )
  at_once = max(1, int(min(rows, at_most // a_row)))
  return {
    "merged weights": _bytes(
      _cast(state.base, settings.model.compute_dtype), places
    ),
    f"KV cache, {at_once} rows of {columns}": at_once * a_row,
    "logits": 2 * 4 * at_once * policy.vocab_size // mesh.shape["tensor"],
  }


def _update(
  settings: config.Config,
  architecture: presets.Architecture,
  mesh: sharding.Mesh,
  method: contract.Method,
  state: TrainState,
) -> tuple[dict[str, int], dict[str, int]]:
  """What an update holds besides: in a layer, and in the unembedding."""
  tensor = mesh.shape["tensor"]
  own = dataclasses.replace(
    architecture,
    vocab_size=architecture.vocab_size // tensor,
    heads=max(1, architecture.heads // tensor),
    kv_heads=max(1, architecture.kv_heads // tensor),
    mlp_width=architecture.mlp_width // tensor,
  )
  passes, size = _passes(settings, method, mesh)
  saved = 0  # of the device's memory, where it goes to the host's
  if settings.model.remat != "offload":
    saved = _saved(settings, own, size)
  one = dataclasses.replace(own, layers=1)
  bare = dataclasses.replace(
    settings, model=dataclasses.replace(settings.model, remat="none")
  )
  inside = 0  # made anew, unless it was kept
  if settings.model.remat != "none":
    inside = _saved(bare, one, size)

  tree = _bytes(state.base, sharding.shardings(state.base, mesh))
  done = method.needs.trees - 1  # gradients that wait to be applied
  sums = 1 if passes > 1 else 0
  compute = jnp.dtype(settings.model.compute_dtype).itemsize
  matrix = sum(a * b for a, b in own.projections.values())
  table = own.vocab_size * own.width
  # What flows back: three arrays as wide as the MLP.
  cotangents = 3 * compute * own.mlp_width * size.rows * size.columns
  # A layer's weights come whole from their parts, once to be multiplied and
  # once to be differentiated; their gradient is summed and then split.
  layer = {
    "gradients": (done + sums + 1) * tree,
    "activations kept": saved,
    "a layer's activations": inside + cotangents,
    "a layer's weights": (2 * compute + 2 * 4) * matrix,
  }
  unembedding = {
    "gradients": (done + sums) * tree,
    "activations kept": saved,
    "unembedding and its gradient": (compute + 2 * 4) * table,
    "log-prob chunk": 4 * settings.model.logprob_chunk * own.vocab_size,
  }
  return layer, unembedding


def _passes(
  settings: config.Config, method: contract.Method, mesh: sharding.Mesh
) -> tuple[int, _Pass]:
  """Most forward passes of a gradient; a device's part of the largest one."""
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  most, found = 1, []
  for batch in _batches(settings, method, mesh):
    packed = batch.packed
    assert packed is not None
    passes, rows, columns = packed.tokens.shape
    most = max(most, passes)
    found.append(_Pass(rows // shards, columns))
  return most, max(found, key=lambda size: size.rows * size.columns)


def _saved(
  settings: config.Config, architecture: presets.Architecture, size: _Pass
) -> int:
  """Bytes that a forward pass keeps for its backward pass, weights apart."""
  policy = sources.build_policy(settings, architecture)
  key = jax.random.key(0)
  base, adapter = (
    jax.eval_shape(init, key) for init in (policy.init, policy.init_adapter)
  )
  numbers = jax.ShapeDtypeStruct((size.rows, size.columns), jnp.int32)

  def backward(base, adapter, tokens, positions, segment_ids):
    return jax.vjp(
      lambda *trees: policy.hidden(*trees, tokens, positions, segment_ids),
      base,
      adapter,
    )[1]

  kept = jax.tree.leaves(
    jax.eval_shape(backward, base, adapter, *(numbers,) * 3)
  )
  weights = {x.shape for x in jax.tree.leaves((base, adapter))}
  return sum(
    math.prod(x.shape) * x.dtype.itemsize
    for x in kept
    if x.shape not in weights
  )


def abstract_batch(
  settings: config.Config, method: contract.Method, mesh: sharding.Mesh
) -> StepBatch:
  """Returns the shapes of the largest batch that an update may see."""
  rl, sft = None, None
  for batch in _batches(settings, method, mesh):
    if isinstance(batch, RLBatch):
      rl = batch
    else:
      sft = batch
  return StepBatch(rl=rl, sft=sft)


def _batches(
  settings: config.Config, method: contract.Method, mesh: sharding.Mesh
) -> list[TokenBatch]:
  """Batches of sequences of the greatest lengths, as ShapeDtypeStructs."""
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
  if needs.demonstrations:
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


def _bytes(tree: Tree, places: Tree) -> int:
  """Bytes of a tree on one device."""
  sizes = jax.tree.map(
    lambda x, place: math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize,
    tree,
    places,
  )
  return sum(jax.tree.leaves(sizes))


def _cast(tree: Tree, dtype: Any) -> Tree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), tree
  )
