"""One layer's mathematics: norm, rotary positions, the decoder block."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from bilevel_jax.models import presets
from bilevel_jax.types import Array

# (q [B, T, N, H], k and v [B, T, K, H]) -> (mixed values [B, T, N, H], kept)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
# (a matrix's name, x [B, T, in]) -> what is added to x W [B, T, out]; None: 0
Addend = Callable[[str, jax.Array], jax.Array | None]

_POLICIES = {
  "attention_and_mlp": jax.checkpoint_policies.save_only_these_names(
    "attention_output", "mlp_input"
  ),
  "everything": jax.checkpoint_policies.nothing_saveable,
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=["layer_input"],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}
REMAT = ("none", *_POLICIES)


def rematerialise(step: Callable, name: str) -> Callable:
  """Returns the body of a scan over layers, recomputed in the backward pass.

  Args:
    step: (carry, layer) -> (carry, output).
    name: one of REMAT. "none" keeps all; "attention_and_mlp" keeps what leaves
      attention and what enters the MLP and recomputes the inside of both;
      "everything" keeps the layer's input alone; "offload" keeps that in the
      host's memory.
  """
  if name == "none":
    return step
  # A scan's body is compiled once: nothing outside it could be merged with
  # the recomputation, so the barrier against that would only cost.
  return jax.checkpoint(step, policy=_POLICIES[name], prevent_cse=False)


def rotation(
  positions: Array, architecture: presets.Architecture
) -> tuple[jax.Array, jax.Array]:
  """Returns the cosine and sine of the rotary angles, float32 [B, T, 1, H/2].

  angle = position * frequency, RoFormer (arXiv:2104.09864).

  Args:
    positions: [B, T] int32.
    architecture: its head_dim, rope_theta and rope_scaling.
  """
  a = architecture
  turned = frequencies(a.head_dim, a.rope_theta, a.rope_scaling)
  angles = positions[:, :, None, None].astype(jnp.float32) * np.asarray(
    turned, np.float32
  ).reshape(1, 1, 1, -1)
  return jnp.cos(angles), jnp.sin(angles)


def frequencies(
  head_dim: int, theta: float, scaling: presets.Llama3Scaling | None
) -> np.ndarray:
  """Returns the rotary frequencies theta^(-2i/H), float64 [H/2].

  Llama 3.1's scaling divides low frequencies by `factor`, keeps high ones, and
  goes smoothly between, as a function of the turns within the original context.
  """
  half = head_dim // 2
  plain = theta ** -(np.arange(half) / half)
  if scaling is None:
    return plain
  turns = scaling.original_max_positions * plain / (2 * np.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return plain * (kept + (1 - kept) / scaling.factor)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Returns x with (x_i, x_{i + H/2}) turned by the i-th angle.

  Args:
    x: queries or keys [B, T, N, H].
    rotation: cosines and sines [B, T, 1, H/2].
  """
  cosine, sine = rotation
  wide = jnp.promote_types(x.dtype, jnp.float32)
  first, second = jnp.split(x.astype(wide), 2, axis=-1)
  turned = (first * cosine - second * sine, second * cosine + first * sine)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


@jax.custom_vjp
def product(x: Array, kernel: Array) -> jax.Array:
  """Returns x @ kernel, [B, T, F], whose gradients are plain products as well.

  JAX's own derivative by the kernel is (g^T x)^T, for which XLA on a CPU
  copies the larger operand and leaves its fast routine: jaxlib 0.10 takes 1.8
  to 2.2 times as long as for x^T g.

  Args:
    x: [B, T, D].
    kernel: [D, F].
  """
  return jnp.matmul(x, kernel)


def _product(x, kernel):
  return jnp.matmul(x, kernel), (x, kernel)


def _product_gradients(operands, g):
  x, kernel = operands
  by_x = jnp.einsum("btf,df->btd", g, kernel)
  return by_x, jnp.einsum("btd,btf->df", x, g)


product.defvjp(_product, _product_gradients)


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) * scale, in float32 (arXiv:1910.07467)."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = x.astype(wide)
    y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    scale = scale.astype(wide).reshape((1,) * (x.ndim - 1) + (-1,))
    return (y * scale).astype(x.dtype)


class Block(nn.Module):
  """Attention, then a gated MLP, each on the normed stream and added to it."""

  architecture: presets.Architecture

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    attend: Attend,
    addend: Addend = lambda name, x: None,
  ) -> tuple[jax.Array, Any]:
    """Returns the stream after this layer, and what `attend` keeps.

    Args:
      x: [B, T, D].
      attend: mixes the values; decides what a query sees.
      addend: of each matrix's product with its input, biases included.
    """
    a = self.architecture

    def project(name, x, bias=False):
      # The stream is a sum over layers: its two writers start smaller.
      gain = 0.5 / a.layers if name in ("o", "down") else 1.0
      init = nn.initializers.variance_scaling(
        gain, "fan_in", "truncated_normal"
      )
      size = a.projections[name][1]
      y = nn.Dense(
        size,
        use_bias=bias,
        kernel_init=init,
        dot_general=lambda x, kernel, *_, **__: product(x, kernel),
        name=name,
      )(x)
      added = addend(name, x)
      return y if added is None else y + added

    def heads(name, x):
      x = project(name, x, a.attention_bias)
      x = x.reshape(*x.shape[:2], -1, a.head_dim)
      if a.qk_norm and name != "v":
        x = RMSNorm(a.norm_eps, name=f"{name}_norm")(x)
      return x if name == "v" else rotate(x, rotation)

    x = checkpoint_name(x, "layer_input")
    y = RMSNorm(a.norm_eps, name="attention_norm")(x)
    mixed, kept = attend(heads("q", y), heads("k", y), heads("v", y))
    mixed = mixed.reshape(*x.shape[:2], -1)
    x += project("o", checkpoint_name(mixed, "attention_output"))

    x = checkpoint_name(x, "mlp_input")
    y = RMSNorm(a.norm_eps, name="mlp_norm")(x)
    y = jax.nn.silu(project("gate", y)) * project("up", y)
    return x + project("down", y), kept
