"""Small policies with weights that no test can mistake for a special case."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax.models import lora, policy, presets

NAMES = ("tiny-llama", "tiny-qwen2", "tiny-qwen3")
ALL = ("q", "k", "v", "o", "gate", "up", "down")


def make(architecture="tiny-qwen3", **changes):
  """Returns a Policy, float32, adapters on every matrix."""
  if isinstance(architecture, str):
    architecture = presets.get(architecture)
  settings = {
    "adapter": lora.Spec(rank=4, alpha=8.0, targets=ALL),
    "compute_dtype": "float32",
    "attention": "xla",
    "remat": "everything",
  }
  return policy.make(architecture, **(settings | changes))


def weights(policy, *, seed=0, dtype=np.float32):
  """Returns (base, adapter): biases, scales and B are random, too."""
  rng = np.random.default_rng(seed)

  def fill(path, x):
    name = path[-1].key
    if name == "scale":
      return jnp.asarray(1 + 0.2 * rng.normal(size=x.shape), dtype)
    spread = {"bias": 0.3, "B": 0.1, "A": 0.3}.get(name, x.shape[-2] ** -0.5)
    return jnp.asarray(spread * rng.normal(size=x.shape), dtype)

  shapes = jax.eval_shape(
    lambda keys: (policy.init(keys[0]), policy.init_adapter(keys[1])),
    jax.random.split(jax.random.key(0)),
  )
  return jax.tree_util.tree_map_with_path(fill, shapes)


def row(rng, vocab_size, lengths, *, padding=0, left=False):
  """Returns tokens, positions and segments [1, T] of packed segments."""
  total = sum(lengths)
  tokens = rng.integers(1, vocab_size, total)
  positions = np.concatenate([np.arange(n) for n in lengths])
  segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
  pad = (padding, 0) if left else (0, padding)
  return tuple(
    np.pad(x, pad).astype(np.int32)[None] for x in (tokens, positions, segments)
  )
