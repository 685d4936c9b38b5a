"""LoRA as functions of trees: the base's matrices plus scale * A @ B."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from flax import linen as nn

from bilevel_jax import errors
from bilevel_jax.fields import setting
from bilevel_jax.models import layers, presets, quantised
from bilevel_jax.types import Tree

# U(-1/sqrt(in), 1/sqrt(in)), what PEFT's kaiming_uniform(a=sqrt(5)) amounts to.
_INIT_A = nn.initializers.variance_scaling(
  1 / 3, "fan_in", "uniform", batch_axis=0
)


ALL_LINEAR = "all-linear"
"""Every matrix of a layer, as PEFT calls them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """Which adapter a model has; hashable, so it can be static."""

  rank: int = setting(16, "rank of the LoRA factors", at_least=1)
  alpha: float = setting(16.0, "A @ B is scaled by alpha / rank", above=0)
  targets: tuple[str, ...] = setting(
    presets.PROJECTIONS,
    "matrices with an adapter: any of q, k, v, o, gate, up, down, each also as "
    "PEFT names it, such as q_proj; or all-linear",
  )

  def __post_init__(self) -> None:
    """Makes one spelling of PEFT's names and ours."""
    object.__setattr__(self, "targets", target_names(self.targets))

  @property
  def scale(self) -> float:
    """What A @ B is multiplied by."""
    return self.alpha / self.rank


def target_names(targets: tuple[str, ...]) -> tuple[str, ...]:
  """Returns matrices by our names: q for q_proj, all seven for all-linear.

  What is no tuple of texts, which a check of types refuses, is left as it is.
  """
  if not isinstance(targets, tuple) or not all(
    isinstance(name, str) for name in targets
  ):
    return targets
  found = tuple(name.removesuffix("_proj") for name in targets)
  return presets.PROJECTIONS if found == (ALL_LINEAR,) else found


def init(
  key: jax.Array, architecture: presets.Architecture, spec: Spec
) -> Tree:
  """Returns {target: {"A": [L, in, r], "B": [L, r, out]}}, float32, B = 0.

  LoRA, Hu et al. 2022 (arXiv:2106.09685), section 4.1: A is random and B zero,
  so that the adapted model starts as the base.

  Args:
    key: PRNG key.
  """
  adapter = {}
  keys = jax.random.split(key, len(spec.targets))
  for target, k in zip(spec.targets, keys, strict=True):
    rows, columns = architecture.projections[target]
    adapter[target] = {
      "A": _INIT_A(k, (architecture.layers, rows, spec.rank), jnp.float32),
      "B": jnp.zeros((architecture.layers, spec.rank, columns), jnp.float32),
    }
  return adapter


def check_targets(
  architecture: presets.Architecture, targets: tuple[str, ...]
) -> None:
  """Returns nothing; refuses targets that the architecture does not have.

  Raises:
    ConfigError: no target, one twice, or one that is not a matrix.
  """
  known = architecture.projections
  if (
    not targets
    or len(set(targets)) < len(targets)
    or not set(targets) <= set(known)
  ):
    raise errors.ConfigError(
      f"adapter.targets must be one or more of {', '.join(known)}, each once, "
      f"got {', '.join(targets) or 'none'}"
    )


def merge_layer(layer: Tree, adapter_layer: Tree | None, scale: float) -> Tree:
  """Returns the layer with W + scale * A @ B for each adapted matrix.

  Computed in float32 or better, so that what is rounded to the compute dtype
  is the sum: an update of W far below bfloat16's resolution still counts.

  Args:
    layer: one layer's weights, kernels [in, out].
    adapter_layer: {target: {"A": [in, r], "B": [r, out]}}, or None.
  """
  if adapter_layer is None:
    return layer
  merged = dict(layer)
  for target, factors in adapter_layer.items():
    kernel = layer[target]["kernel"]
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    a, b = factors["A"].astype(wide), factors["B"].astype(wide)
    kernel = kernel.astype(wide) + scale * (a @ b)
    merged[target] = {**layer[target], "kernel": kernel}
  return merged


def addend(factors: Tree, scale: float) -> layers.Addend:
  """Returns x -> scale (x A) B of a layer's adapted matrices.

  No array of a matrix's own size is made, and none of its gradient.

  Args:
    factors: {target: {"A": [in, r], "B": [r, out]}}, in the compute dtype.
  """

  def of(name: str, x: jax.Array) -> jax.Array | None:
    if name not in factors:
      return None
    a, b = factors[name]["A"], factors[name]["B"]
    return layers.product(layers.product(x, a) * scale, b)

  return of


def map_targets(
  function: Callable[[jax.Array], jax.Array], base: Tree, targets: Iterable[str]
) -> Tree:
  """Returns the base with `function` of each matrix that an adapter targets.

  Args:
    function: of a target's kernels, [L, in, out].
  """
  layers = dict(base["layers"])
  for target in targets:
    kernel = function(layers[target]["kernel"])
    layers[target] = {**layers[target], "kernel": kernel}
  return {**base, "layers": layers}


def delta_norm(
  base: Tree, adapter: Tree, scale: float
) -> tuple[jax.Array, jax.Array]:
  """Returns (||scale * A @ B||, ||W||) over all adapted matrices, float32.

  ||A B||^2 = trace(A^T A B B^T), so that no product is ever formed.

  Args:
    adapter: {target: {"A": [L, in, r], "B": [L, r, out]}}.
  """
  delta = weight = jnp.zeros((), jnp.float32)
  for target, factors in adapter.items():
    a, b = factors["A"], factors["B"]
    # By layers: a base in few bits is not to be expanded whole.
    weight += jnp.sum(
      jax.lax.map(
        lambda kernel: jnp.sum(
          jnp.square(quantised.expand(kernel).astype(jnp.float32))
        ),
        base["layers"][target]["kernel"],
      )
    )
    delta += jnp.sum(
      jnp.einsum("lir,lis->lrs", a, a) * jnp.einsum("lro,lso->lrs", b, b)
    ).astype(jnp.float32)
  return scale * jnp.sqrt(jnp.maximum(delta, 0)), jnp.sqrt(weight)
