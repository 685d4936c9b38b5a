"""Log-probabilities and entropies of tokens, from hidden states, in chunks.

Logits for every position are never in memory together: at a vocabulary of
152k, 32k tokens of float32 logits are 18 GiB.
"""

import jax
import jax.numpy as jnp

from bilevel_jax.types import Array


def token_logprobs(
  hidden: Array,
  unembedding: Array,
  tokens: Array,
  *,
  temperature: float | Array = 1.0,
  chunk: int = 1024,
  with_entropy: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
  """Returns log p(tokens[:, t] | tokens[:, :t]) and the entropy of that draw.

  As `target_logprobs`, of each row's next token. Column 0 is zero.

  Args:
    hidden: [B, T, D] after the final norm; column t predicts token t + 1.
    unembedding: [D, V].
    tokens: [B, T] int32.
    temperature: what the logits are divided by.
    chunk: positions, over all rows, whose logits are in memory at once.
    with_entropy: also return the entropies in nats; they carry no gradient.

  Returns:
    logprobs [B, T], and entropies [B, T] or None.
  """
  found = target_logprobs(
    hidden,
    unembedding,
    jnp.pad(tokens[:, 1:], ((0, 0), (0, 1))),
    temperature=temperature,
    chunk=chunk,
    with_entropy=with_entropy,
  )
  return jax.tree.map(lambda x: jnp.pad(x[:, :-1], ((0, 0), (1, 0))), found)


def target_logprobs(
  states: Array,
  unembedding: Array,
  targets: Array,
  *,
  temperature: float | Array = 1.0,
  chunk: int = 1024,
  with_entropy: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
  """Returns log p of targets under the softmax of states @ unembedding.

  log p = logit[target] / temperature - logsumexp(logits / temperature), over
  the whole vocabulary, in float32 or better.

  Args:
    states: [B, K, D] hidden states after the final norm.
    unembedding: [D, V].
    targets: [B, K] int32.
    temperature: what the logits are divided by.
    chunk: states, over all rows, whose logits are in memory at once.
    with_entropy: also return the entropies in nats; they carry no gradient.

  Returns:
    logprobs [B, K], and entropies [B, K] or None.
  """
  rows, columns, _ = states.shape
  accumulate = jnp.promote_types(states.dtype, jnp.float32)
  per_chunk = max(1, min(columns, chunk // rows))
  chunks = -(-columns // per_chunk)
  padding = chunks * per_chunk - columns

  # Time is the scanned axis: rows stay whole, so a sharded batch stays sharded.
  def split(x: Array) -> jax.Array:
    x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(rows, chunks, per_chunk, *x.shape[2:]), 1, 0)

  @jax.checkpoint
  def one_chunk(carry, inputs):
    states, targets = inputs
    logits = jnp.matmul(states, unembedding, preferred_element_type=accumulate)
    logits = logits / temperature
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    entropy = None
    if with_entropy:
      # A metric only: nothing flows back through it.
      logp = jax.lax.stop_gradient(logits - normaliser[..., None])
      entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return carry, (picked - normaliser, entropy)

  _, outputs = jax.lax.scan(one_chunk, None, (split(states), split(targets)))

  def join(x: jax.Array) -> jax.Array:
    x = jnp.moveaxis(x, 0, 1).reshape(rows, chunks * per_chunk)
    return x[:, :columns]

  logprobs, entropies = jax.tree.map(join, outputs)
  return logprobs, entropies
