"""A transformer as a `types.Policy`: the door through which rooms see it."""

import functools

import jax
import jax.numpy as jnp

from bilevel_jax import config, types
from bilevel_jax.models import attention as attention_kernels
from bilevel_jax.models import layers, lora, presets, transformer


def make(
  architecture: presets.Architecture,
  *,
  adapter_rank: int,
  adapter_alpha: float,
  adapter_targets: tuple[str, ...],
  compute_dtype: jax.typing.DTypeLike,
  attention: str,
  remat: str,
  rows: jax.sharding.NamedSharding | None = None,
) -> types.Policy:
  """Returns the policy of an architecture, as pure functions.

  Equal arguments give the same functions, so that what was compiled for one
  run of a process serves the next: the sampler, above all.

  Args:
    architecture: sizes and switches.
    adapter_rank: r of the LoRA factors.
    adapter_alpha: A @ B is scaled by alpha / r.
    adapter_targets: projections that have an adapter.
    compute_dtype: of activations, of merged weights and of the KV cache.
    attention: auto, xla, chunked or cudnn, for `hidden`; `extend` has its own.
    remat: one of layers.REMAT.
    rows: how the rows of a training batch lie on devices; None: on one.

  Raises:
    ConfigError: unknown targets or remat, or a kernel that cannot run here.
  """
  dtype = jnp.dtype(compute_dtype)
  if remat not in layers.REMAT:
    raise config.ConfigError(
      f"model.remat must be one of {', '.join(layers.REMAT)}, got {remat!r}"
    )
  targets = tuple(adapter_targets)
  lora.check_targets(architecture, targets)
  kernel = attention_kernels.choose(attention, jax.default_backend(), dtype)
  return _composed(
    architecture,
    rank=adapter_rank,
    scale=adapter_alpha / adapter_rank,
    targets=targets,
    dtype=dtype,
    kernel=kernel,
    remat=remat,
    rows=rows,
  )


@functools.cache
def _composed(
  architecture: presets.Architecture,
  *,
  rank: int,
  scale: float,
  targets: tuple[str, ...],
  dtype: jnp.dtype,
  kernel: str,
  remat: str,
  rows: jax.sharding.NamedSharding | None,
) -> types.Policy:
  of = functools.partial(functools.partial, architecture=architecture)
  return types.Policy(
    vocab_size=architecture.vocab_size,
    init=of(transformer.init),
    init_adapter=lambda key: lora.init(
      key, architecture, rank=rank, targets=targets
    ),
    hidden=of(
      transformer.hidden,
      scale=scale,
      dtype=dtype,
      kernel=kernel,
      remat=remat,
      rows=rows,
    ),
    unembedding=of(transformer.unembedding, dtype=dtype),
    merge=of(transformer.merge, scale=scale, dtype=dtype),
    init_cache=of(transformer.init_cache, dtype=dtype),
    extend=of(transformer.extend),
    logits=of(transformer.logits),
    max_positions=architecture.max_positions,
    rows=rows,
  )
