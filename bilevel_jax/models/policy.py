"""A transformer as a `types.Policy`, the form in which the package uses it."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from bilevel_jax import errors, types
from bilevel_jax.models import attention as attention_kernels
from bilevel_jax.models import frozen as frozen_lib
from bilevel_jax.models import layers, lora, presets, transformer


def dtype_of(device: Any) -> str:
  """Returns bfloat16 where a device multiplies it, else float32.

  CPUs do not, nor do GPUs of a compute capability below 8, such as the T4.

  Args:
    device: whose platform and compute capability decide.
  """
  if device.platform == "cpu":
    return "float32"
  capability = getattr(device, "compute_capability", None)
  return "float32" if capability and float(capability) < 8 else "bfloat16"


def make(
  architecture: presets.Architecture,
  *,
  compute_dtype: jax.typing.DTypeLike,
  attention: str = "auto",
  remat: str = "none",
  adapter: lora.Spec | None = None,
  trained: lora.Spec | None = None,
  base_dtype: str = "float32",
  rows: jax.sharding.NamedSharding | None = None,
  without_token: frozenset[int] = frozenset(),
) -> types.Policy:
  """Returns the policy of an architecture, as pure functions.

  Equal arguments give the same functions, so that what was compiled for one
  run of a process serves the next: the sampler, above all.

  Args:
    compute_dtype: of activations, of merged weights and of the KV cache.
    attention: auto, xla, chunked or cudnn, for `hidden`; `extend` has its own.
    remat: what a layer recomputes in the backward pass, one of `layers.REMAT`.
    adapter: None: the policy takes no adapter, and has none to initialise.
    trained: LoRA factors that are trained in place of the base, on matrices
      that `adapter` leaves; None: the base itself.
    base_dtype: how a frozen base is kept, one of `quantised.DTYPES`.
    rows: how the rows of a training batch lie on devices; None: on one.
    without_token: ids that the tokenizer has no token for.

  Raises:
    ConfigError: unknown targets or remat, or a kernel that cannot run here.
  """
  dtype = jnp.dtype(compute_dtype)
  if remat not in layers.REMAT:
    raise errors.ConfigError(
      f"model.remat must be one of {', '.join(layers.REMAT)}, got {remat!r}"
    )
  for spec in filter(None, (adapter, trained)):
    lora.check_targets(architecture, spec.targets)
  kernel = attention_kernels.choose(attention, jax.default_backend(), dtype)
  return _composed(
    architecture,
    adapter,
    trained,
    base_dtype,
    dtype,
    kernel,
    remat,
    rows,
    without_token,
  )


@functools.cache
def _composed(
  architecture: presets.Architecture,
  adapter: lora.Spec | None,
  trained: lora.Spec | None,
  base_dtype: str,
  dtype: jnp.dtype,
  kernel: str,
  remat: str,
  rows: jax.sharding.NamedSharding | None,
  without_token: frozenset[int],
) -> types.Policy:
  of = functools.partial(functools.partial, architecture=architecture)
  # Without an adapter there is nothing to scale; what is handed in anyway
  # must not pass for one.
  scales = {spec.scale for spec in (adapter, trained) if spec is not None}
  if len(scales) > 1:
    raise ValueError("two adapters of one model must have the same scale")
  scale = scales.pop() if scales else math.nan

  def init_adapter(key: jax.Array) -> types.Tree:
    if adapter is None:
      raise ValueError("this policy was made without an adapter")
    return lora.init(key, architecture, adapter)

  policy = types.Policy(
    vocab_size=architecture.vocab_size,
    init=of(transformer.init),
    init_adapter=init_adapter,
    hidden=of(
      transformer.hidden,
      scale=scale,
      dtype=dtype,
      kernel=kernel,
      remat=remat,
      rows=rows,
      frozen=trained is not None,
    ),
    unembedding=of(transformer.unembedding, dtype=dtype),
    merge=of(transformer.merge, scale=scale, dtype=dtype),
    init_cache=of(transformer.init_cache, dtype=dtype),
    extend=of(transformer.extend, scale=scale),
    logits=of(transformer.logits, without_token=without_token),
    max_positions=architecture.max_positions,
    rows=rows,
    without_token=without_token,
  )
  if trained is None:
    return policy
  return frozen_lib.over_frozen(policy, architecture, trained, base_dtype)
