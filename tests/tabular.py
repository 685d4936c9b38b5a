"""A bigram table as a Policy: small enough to enumerate every sequence.

The next token depends on the current token alone, with logits
`table[token] + scale * (A @ B)[token]`, so that exact expectations, gradients
and second derivatives can be computed by summing over all sequences.
"""

import jax
import jax.numpy as jnp

from bilevel_jax import types


def policy(
  vocab_size: int, *, rank: int = 2, scale: float = 1.0
) -> types.Policy:
  """Returns a Policy whose base is {"table": [V, V]}, adapter {"A", "B"}."""

  def init(key):
    return {"table": jax.random.normal(key, (vocab_size, vocab_size))}

  def init_adapter(key):
    a = jax.random.normal(key, (vocab_size, rank)) / rank
    return {"A": a, "B": jnp.zeros((rank, vocab_size))}

  def merge(base, adapter):
    if adapter is None:
      return base
    return {"table": base["table"] + scale * adapter["A"] @ adapter["B"]}

  def hidden(base, adapter, tokens, positions, segment_ids, continuations=None):
    del positions, segment_ids, continuations
    return merge(base, adapter)["table"][tokens]

  def extend(weights, cache, tokens, positions, start, first):
    del positions, start, first
    return weights["table"][tokens], cache

  return types.Policy(
    vocab_size=vocab_size,
    init=init,
    init_adapter=init_adapter,
    hidden=hidden,
    unembedding=lambda base: jnp.eye(vocab_size, dtype=base["table"].dtype),
    merge=merge,
    init_cache=lambda rows, columns: jnp.zeros((rows, columns)),
    extend=extend,
    logits=lambda weights, hidden: hidden,
  )


def over_frozen(vocab_size: int, *, rank: int = 2) -> types.Policy:
  """Returns a Policy whose base are factors over a table, bound to it.

  As with LoRA on two matrices, `base` and `adapter` have products of their own.
  """
  whole = policy(vocab_size, rank=rank)
  table = whole.init(jax.random.key(3))["table"]

  def init(key):
    factors = whole.init_adapter(key)
    b = 0.3 * jax.random.normal(jax.random.key(4), factors["B"].shape)
    return factors | {"B": b}

  def merge(base, adapter):
    return whole.merge({"table": table + base["A"] @ base["B"]}, adapter)

  return whole._replace(
    init=init,
    hidden=lambda base, adapter, tokens, *_: merge(base, adapter)["table"][
      tokens
    ],
    unembedding=lambda base: jnp.eye(vocab_size, dtype=base["A"].dtype),
    merge=merge,
  )
