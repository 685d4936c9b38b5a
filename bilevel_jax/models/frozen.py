"""A policy whose variables are LoRA factors over a base that stays as it is."""

import functools
from collections.abc import Callable

from bilevel_jax.models import lora, presets, quantised
from bilevel_jax.types import Policy, Tree


def over_frozen(
  whole: Policy,
  architecture: presets.Architecture,
  spec: lora.Spec,
  base_dtype: str,
) -> Policy:
  """Returns the policy whose `base` is an adapter, over a base still to come.

  Its `over` has the functions that need it. An upper adapter is on other
  matrices: the two are one adapter, whose parts methods move by themselves.

  Args:
    whole: the policy of the base and one adapter.
    spec: of the factors that stand in the place of `base`.
    base_dtype: how the base is kept, one of `quantised.DTYPES`.
  """

  def unbound(*_, **__):
    raise ValueError("this policy needs its frozen base: `over` binds it")

  policy = whole._replace(
    init=functools.partial(lora.init, architecture=architecture, spec=spec),
    hidden=unbound,
    unembedding=unbound,
    merge=unbound,
  )

  def over(base: Tree) -> Policy:
    def on_both(function: Callable) -> Callable:
      return lambda factors, adapter, *rest: function(
        base, {**factors, **(adapter or {})}, *rest
      )

    return policy._replace(
      hidden=on_both(whole.hidden),
      unembedding=lambda factors: whole.unembedding(base),
      merge=on_both(whole.merge),
      over=None,
    )

  return policy._replace(
    over=over,
    init_frozen=whole.init,
    freeze=functools.partial(quantised.freeze, dtype=base_dtype),
  )
