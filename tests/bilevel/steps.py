"""Steps of live optimisers, and differences of what follows from them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel_jax.training import optimizers

OPTIMIZERS = {
  "sgd": optax.sgd(0.1),
  "momentum": optax.sgd(0.1, momentum=0.9),
  "adam": optax.adam(0.01, eps_root=1e-16),
  "adamw": optax.adamw(0.01, eps_root=1e-16),
  "clip, adam": optax.chain(
    optimizers.clip_by_global_norm(0.5), optax.adam(0.01, eps_root=1e-16)
  ),
}


def warm(optimizer, x):
  """Returns the optimiser's state after two gradients."""
  state = optimizer.init(x)
  for scale in (0.3, -0.1):
    gradient = jax.tree.map(lambda v, k=scale: k * (1 + jnp.sin(3 * v)), x)
    _, state = optimizer.update(gradient, state, x)
  return state


def differences(function, s, size=1e-5):
  """Returns central differences of a function by each part of s."""
  one = lambda e: (function(s + size * e) - function(s - size * e)) / (2 * size)
  return np.array([one(e) for e in np.eye(len(s))])
