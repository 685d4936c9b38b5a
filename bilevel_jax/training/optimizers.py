"""Optimisers: optax chains that may also be differentiated through."""

import math

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from bilevel_jax import config
from bilevel_jax.training import sharding

# Layers are stacked, so a norm's scale is [L, D] and a bias [L, out]: what is
# a matrix cannot be told from the number of dimensions.
NOT_DECAYED = ("scale", "bias")
_MUON_MOMENTUM = 0.95


def learning_rate(
  settings: config.Optimizer, total_updates: int
) -> optax.Schedule:
  """Returns the schedule: updates applied so far -> learning rate.

  Update i of the W warm-up updates has peak * (i + 1) / W, so the first one is
  not wasted. The decay begins at the peak and is at end_share * peak when all
  updates are done.

  Args:
    settings: learning_rate (the peak), schedule, warmup_steps, end_share.
    total_updates: updates of the whole run, warm-up included.
  """
  peak, warmup = settings.learning_rate, settings.warmup_steps
  if peak is None:
    peak = config.BASE_LEARNING_RATE
  decay_updates = max(1, total_updates - warmup)
  end = settings.end_share
  decay = {
    "constant": lambda: optax.constant_schedule(peak),
    "cosine": lambda: optax.cosine_decay_schedule(peak, decay_updates, end),
    "linear": lambda: optax.linear_schedule(peak, peak * end, decay_updates),
  }[settings.schedule]()
  if warmup == 0:
    return decay
  ramp = optax.linear_schedule(peak / warmup, peak, warmup - 1)
  return optax.join_schedules([ramp, decay], [warmup])


def build(
  settings: config.Optimizer, total_updates: int
) -> optax.GradientTransformation:
  """Returns clipping, then the optimiser, decoupled decay, and the schedule.

  Equal to `optax.adamw` and `optax.sgd` after `optax.clip_by_global_norm`,
  and differentiable where those are not: at a gradient that is exactly zero,
  which a batch of equal rewards gives.

  Args:
    total_updates: updates of the whole run, for the schedule.
  """
  parts = []
  if settings.clip_norm is not None:
    parts.append(clip_by_global_norm(settings.clip_norm))
  adam = optax.scale_by_adam(
    settings.b1, settings.b2, settings.eps, settings.eps_root
  )
  if settings.name == "adamw":
    parts.append(adam)
  elif settings.name == "muon":
    parts.append(muon_and(adam, momentum=settings.momentum or _MUON_MOMENTUM))
  elif settings.momentum:
    parts.append(optax.trace(settings.momentum))
  if settings.weight_decay:
    parts.append(optax.add_decayed_weights(settings.weight_decay, decayed))
  parts.append(
    optax.scale_by_learning_rate(learning_rate(settings, total_updates))
  )
  return optax.chain(*parts)


def muon_and(
  other: optax.GradientTransformation, *, momentum: float
) -> optax.GradientTransformation:
  """Returns Muon for the layers' matrices, and another for all else.

      0.2 sqrt(max(in, out)) orthogonalised(Nesterov momentum of W's gradient)

  of each layer's W [in, out], with a root mean square of about 0.2 whatever
  the sizes, which is AdamW's: learning rates carry over (Liu et al.,
  arXiv:2502.16982). Embeddings, head, norms, biases and adapters go to `other`.
  Undefined derivatives at a gradient of exactly zero.
  """
  stacked = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)

  def rescale(updates, params=None):
    return jax.tree.map(
      lambda u: 0.2 * math.sqrt(max(u.shape[1:])) * u, updates
    )

  return optax.partition(
    {
      "muon": optax.chain(
        optax.contrib.scale_by_muon(
          beta=momentum,
          # optax's own rule, two dimensions, would take the stacked norms.
          weight_dimension_numbers=lambda updates: jax.tree.map(
            lambda _: stacked, updates
          ),
        ),
        optax.stateless(rescale),
      ),
      "other": other,
    },
    lambda params: jax.tree_util.tree_map_with_path(
      lambda path, _: "muon" if _is_stacked_matrix(path) else "other", params
    ),
  )


def _is_stacked_matrix(path) -> bool:
  name = sharding.path_name(path)
  return name.startswith("layers/") and name.endswith("/kernel")


def decayed(params: optax.Params) -> optax.Params:
  """Returns, for each leaf, whether weight decay applies: by its name."""

  return jax.tree_util.tree_map_with_path(
    lambda path, _: (
      sharding.path_name(path).rsplit("/", 1)[-1] not in NOT_DECAYED
    ),
    params,
  )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """Returns a transformation that scales updates to a norm <= max_norm.

      updates / sqrt(max(1, norm(updates)**2 / max_norm**2))

  The root is of a number that is at least 1, so that every derivative is
  finite at zero, where the norm itself has none.

  Args:
    max_norm: the largest Euclidean norm of the whole tree that is kept.
  """

  def update(updates, state, params=None):
    squares = sum(jnp.sum(jnp.square(u)) for u in jax.tree.leaves(updates))
    divisor = jnp.sqrt(jnp.maximum(1.0, squares / max_norm**2))
    return jax.tree.map(lambda u: u / divisor.astype(u.dtype), updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
