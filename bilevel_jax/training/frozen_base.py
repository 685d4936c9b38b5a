"""What a run starts from: weights, or factors and the base they are over."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import config, errors, processes
from bilevel_jax.random_streams import Stream
from bilevel_jax.training import sharding, sources
from bilevel_jax.types import Policy, Tree
from bilevel_jax.weights import peft_files


def start_weights(
  settings: config.Config, model: sources.Model, mesh: jax.sharding.Mesh
) -> tuple[Tree | None, Tree]:
  """Returns (what is frozen, or None; what is trained, as it begins).

  Raises:
    ConfigError: weights that cannot be read or do not fit.
  """
  policy = model.policy
  if policy.over is None:
    return None, sources.read_base(model, mesh)
  key = Stream.FACTORS.key(settings.seed)
  places = sharding.shardings(jax.eval_shape(policy.init, key), mesh)
  if settings.adapter.weights is None:
    factors = jax.jit(policy.init, out_shardings=places)(key)
  else:
    factors = processes.put(_given_factors(settings, model), places)
  return _read_frozen(settings, model, mesh), factors


def _read_frozen(
  settings: config.Config, model: sources.Model, mesh: jax.sharding.Mesh
) -> Tree:
  """The base as it is kept, made array by array in the host's memory.

  Several processes read their own parts, in float32, to their devices.
  """
  if settings.model.base_dtype == "float32":
    return sources.read_base(model, mesh)
  init, freeze = model.policy.init_frozen, model.policy.freeze
  assert init is not None
  assert freeze is not None
  if processes.several():
    whole = sources.read_base(model, mesh)
  else:
    shapes = jax.eval_shape(init, jax.random.key(0))
    host = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    whole = model.opened.read(jax.tree.map(lambda _: host, shapes))
  named, structure = jax.tree_util.tree_flatten_with_path(whole)
  del whole
  kept = []
  while named:
    path, leaf = named.pop(0)
    of = functools.partial(freeze, sharding.path_name(path))
    kept.append(jax.jit(of)(leaf))
  frozen = jax.tree.unflatten(structure, kept)
  return jax.device_put(frozen, sharding.shardings(frozen, mesh))


def _given_factors(settings: config.Config, model: sources.Model) -> Tree:
  """The factors of `adapter.weights`, on the host."""
  source, spec = str(settings.adapter.weights), settings.adapter.spec
  place = peft_files.find(pathlib.Path(source).expanduser())
  if place is None:
    raise errors.ConfigError(
      "adapter.weights must be the directory of a PEFT adapter or a run that "
      f"left one, got {source}"
    )
  loaded = peft_files.load_adapter(place, model.architecture)
  theirs = loaded.spec
  if (theirs.rank, theirs.alpha, {*theirs.targets}) != (
    spec.rank,
    spec.alpha,
    {*spec.targets},
  ):
    raise errors.ConfigError(
      f"adapter.weights {source} needs adapter.rank={theirs.rank}, "
      f"adapter.alpha={theirs.alpha:g} and adapter.targets="
      f"{','.join(theirs.targets)}, got {spec.rank}, {spec.alpha:g} and "
      f"{','.join(spec.targets)}"
    )
  fits = peft_files.read_base(place)
  if fits.fingerprint not in (None, model.opened.fingerprint()):
    raise errors.ConfigError(
      f"adapter.weights {source} is an adapter of {fits.name}, and "
      "model.weights are others"
    )
  return jax.tree.map(np.asarray, loaded.adapter)


def abstract(policy: Policy, mesh: sharding.Mesh) -> Tree | None:
  """Returns the frozen base's shapes and where they lie; None: it has none."""
  freeze = policy.freeze
  if policy.init_frozen is None or freeze is None:
    return None
  whole = jax.eval_shape(policy.init_frozen, jax.random.key(0))
  shapes = jax.tree_util.tree_map_with_path(
    lambda path, x: jax.eval_shape(
      functools.partial(freeze, sharding.path_name(path)), x
    ),
    whole,
  )
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    sharding.shardings(shapes, mesh),
  )


def checksum(base: Tree) -> dict[str, int]:
  """Returns what distinguishes one set of weights from another: JSON."""
  leaves = jax.tree.leaves(base)

  def summed(xs: list[jax.Array]) -> jax.Array:
    # Integers, so that no mesh changes the sum.
    bits = [
      jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") for x in xs
    ]
    return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in bits]).sum(
      dtype=jnp.uint32
    )

  return {
    "parameters": sum(x.size for x in leaves),
    "checksum": int(jax.jit(summed)(leaves)),
  }
