"""A deep residual network with low-rank factors: many parameters, few rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel_jax.bilevel import unrolled
from bilevel_jax.bilevel.problem import gradient

LAYERS, WIDTH = 8, 32
STEP = 0.02
UNROLLED = unrolled.unrolled(optax.sgd(STEP), steps=2)


def objective(compute=jnp.float32):
  """A deep residual network with low-rank factors, scanned over its layers."""

  def evaluate(base, adapter, batch):
    def layer(x, weights):
      w, v, a, b = (t.astype(compute) for t in weights)
      hidden = jax.nn.gelu(x @ (w + a @ b))
      return x + hidden @ v / WIDTH**0.5, None

    x = batch[0].astype(compute)
    stack = (base["w"], base["v"], adapter["a"], adapter["b"])
    x, _ = jax.lax.scan(jax.checkpoint(layer), x, stack)
    error = x.astype(base["w"].dtype) - batch[1]
    return jnp.mean(jnp.square(error)), {"rows": jnp.arange(len(x))}

  return evaluate


def inputs(rows=16, width=WIDTH, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  base = {
    "w": normal(LAYERS, width, 4 * width) / width**0.5,
    "v": normal(LAYERS, 4 * width, width) / width**0.5,
  }
  adapter = {
    "a": normal(LAYERS, width, 4) / width**0.5,
    "b": normal(LAYERS, 4, 4 * width) / 2,
  }
  batch = (normal(rows, width), normal(rows, width))
  return base, adapter, batch


def hypergradient(estimate, objective):
  def run(base, adapter, batch, state):
    return estimate(
      gradient(objective),
      gradient(objective),
      base,
      adapter,
      batch,
      batch,
      state,
    )

  return run
