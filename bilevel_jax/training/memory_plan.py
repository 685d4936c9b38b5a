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
from bilevel_jax.models import presets, quantised
from bilevel_jax.rollout import cache, engine
from bilevel_jax.training import (
  frozen_base,
  largest_batch,
  learner,
  programs,
  sharding,
  sources,
)
from bilevel_jax.types import Policy, TrainState, Tree

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
  whole, whole_places = state.base, places.base
  frozen = frozen_base.abstract(policy, mesh)
  if frozen is not None:
    whole, whole_places = frozen, jax.tree.map(lambda x: x.sharding, frozen)
  resident = {
    "frozen base": 0 if frozen is None else _bytes(frozen, whole_places),
    "base" if frozen is None else "factors": _bytes(state.base, places.base),
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
      whole,
      whole_places,
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
  whole: Tree,
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
  few_bits = quantised.is_quantised(whole["layers"])
  at_most = rollout.kv_cache_bytes or (
    math.inf if free is None else cache.SHARE_OF_FREE * free
  )
  at_once = max(1, int(min(rows, at_most // a_row)))
  return {
    "quantised weights" if few_bits else "merged weights": _bytes(
      whole if few_bits else _cast(whole, settings.model.dtype), places
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
  compute = jnp.dtype(settings.model.dtype).itemsize
  matrix = sum(a * b for a, b in own.projections.values())
  table = own.vocab_size * own.width
  # What flows back: three arrays as wide as the MLP.
  cotangents = 3 * compute * own.mlp_width * size.rows * size.columns
  # A layer's weights come whole from their parts, once to be multiplied and
  # once to be differentiated; their gradient is summed and then split. What is
  # frozen has none.
  gradient = 2 * 4 if settings.model.train == "all" else 0
  layer = {
    "gradients": (done + sums + 1) * tree,
    "activations kept": saved,
    "a layer's activations": inside + cotangents,
    "a layer's weights": (2 * compute + gradient) * matrix,
  }
  unembedding = {
    "gradients": (done + sums) * tree,
    "activations kept": saved,
    "unembedding and its gradient": (compute + gradient) * table,
    "log-prob chunk": 4 * settings.model.logprob_chunk * own.vocab_size,
  }
  return layer, unembedding


def _passes(
  settings: config.Config, method: contract.Method, mesh: sharding.Mesh
) -> tuple[int, _Pass]:
  """Most forward passes of a gradient; a device's part of the largest one."""
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  most, found = 1, []
  for batch in largest_batch.parts(settings, method, mesh):
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
  model, key = settings.model, jax.random.key(0)
  inits = [policy.init_frozen, policy.init, policy.init_adapter]
  if settings.adapter.upper(model.train) is None:
    inits[-1] = None
  trees = tuple(init and jax.eval_shape(init, key) for init in inits)
  if policy.freeze is not None:
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    trees = (frozen_base.abstract(policy, mesh), *trees[1:])
  numbers = jax.ShapeDtypeStruct((size.rows, size.columns), jnp.int32)

  def backward(frozen, base, adapter, tokens, positions, segment_ids):
    over = programs.bound(policy, frozen)
    return jax.vjp(
      lambda *trees: over.hidden(*trees, tokens, positions, segment_ids),
      base,
      adapter,
    )[1]

  kept = jax.tree.leaves(jax.eval_shape(backward, *trees, *(numbers,) * 3))
  weights = {
    x.shape
    for x in jax.tree.leaves(
      (trees, inits[0] and jax.eval_shape(inits[0], key))
    )
  }
  return sum(
    math.prod(x.shape) * x.dtype.itemsize
    for x in kept
    if x.shape not in weights
  )


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
