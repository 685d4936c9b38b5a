"""Tokens from logits: one key per token of a request, whatever row it is in.

A token is sampled by inverting the cumulative distribution, twice: first among
blocks of the vocabulary, then inside the block. That costs two uniforms and
one pass over the logits, where Gumbel noise costs a draw per entry and half
of the time of decoding a small model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import errors, types

_BLOCK = 128


@types.pytree
class Rules:
  """How each row draws its tokens: `types.Sampling`, one value per row."""

  temperature: types.Array  # [B] float32, 0 is greedy
  top_k: types.Array  # [B] int32, 0 keeps every token
  top_p: types.Array  # [B] float32
  min_p: types.Array  # [B] float32


class Needs(NamedTuple):
  """What a batch's rules ask of the sampler: known before it is compiled."""

  draw: bool  # some row samples
  argmax: bool  # some row is greedy
  select: bool  # some row truncates by top-k or top-p
  floor: bool  # some row truncates by min-p


def rules(sampling: types.Sampling, prompts: int) -> Rules:
  """Returns the rules of each prompt, on the host.

  Args:
    sampling: scalars, or arrays of shape [prompts].

  Raises:
    ConfigError: a value out of its range, or an array of another shape.
  """
  limits = {
    "temperature": (np.float32, lambda x: x >= 0, "at least 0"),
    "top_k": (
      np.int32,
      lambda x: (x >= 0) & (x < 2**31),
      "at least 0, below 2^31",
    ),
    "top_p": (np.float32, lambda x: (x > 0) & (x <= 1), "above 0, at most 1"),
    "min_p": (np.float32, lambda x: (x >= 0) & (x < 1), "at least 0, below 1"),
  }
  values = {}
  for name, (dtype, accepts, rule) in limits.items():
    value = np.asarray(getattr(sampling, name))
    if value.shape not in ((), (prompts,)):
      raise errors.ConfigError(
        f"sampling.{name} must be a scalar or have one value for each of the "
        f"{prompts} prompts, got shape {value.shape}"
      )
    finite = np.isfinite(value)
    good = finite & accepts(value)
    if not good.all():
      bad = value[~good].flat[0]
      kind = "" if finite.all() else "a finite number, "
      raise errors.ConfigError(
        f"sampling.{name} must be {kind}{rule}, got {bad}"
      )
    values[name] = np.broadcast_to(value, (prompts,)).astype(dtype)
  return Rules(**values)


def key(seed: int) -> jax.Array:
  """Returns the PRNG key of a seed.

  Raises:
    ConfigError: a seed that JAX would take for another one.
  """
  if not 0 <= seed < 2**32:
    raise errors.ConfigError(
      f"sampling.seed must be at least 0, below 2^32, got {seed}"
    )
  return jax.random.key(seed)


def needs(rules: Rules) -> Needs:
  """Returns what the sampler must be able to do for these rows."""
  greedy = np.asarray(rules.temperature) == 0
  return Needs(
    draw=bool((~greedy).any()),
    argmax=bool(greedy.any()),
    select=bool(((rules.top_k > 0) | (rules.top_p < 1))[~greedy].any()),
    floor=bool((rules.min_p > 0)[~greedy].any()),
  )


def row_keys(
  key: jax.Array, prompt_ids: types.Array, samples: types.Array
) -> jax.Array:
  """Returns a key [B] for each row's request: fold(fold(key, id), sample).

  Args:
    key: PRNG key.
    prompt_ids: [B] uint32.
    samples: [B], number of each row's sample.
  """
  fold = jax.random.fold_in
  return jax.vmap(lambda p, s: fold(fold(key, p), s))(prompt_ids, samples)


def draw(
  keys: jax.Array,
  index: types.Array,
  logits: jax.Array,
  rules: Rules,
  *,
  needs: Needs,
) -> tuple[jax.Array, jax.Array]:
  """Returns the next token [B] of each row and its log-probability [B].

  The log-probability is that of softmax(logits / temperature) over the whole
  vocabulary (of temperature 1 where the temperature is 0). Top-k comes first,
  then top-p on what it kept, then min-p; tokens that tie with the last one
  kept are kept too. A token whose probability is 0 is never sampled.

  Args:
    keys: [B], from `row_keys`.
    index: [B], how many tokens each request has sampled before.
    logits: [B, V] float32; -inf forbids a token. With NaN or +inf in a row
      its log-probability is not finite and its token means nothing.
    needs: what `needs(rules)` says, or more.
  """
  temperature = rules.temperature[:, None]
  logits = logits.astype(jnp.float32)
  # The greatest is exactly 0, however small the temperature.
  below = logits - logits.max(-1, keepdims=True)
  scaled = below / jnp.where(temperature == 0, 1.0, temperature)
  mass = _blocks(jnp.exp(scaled))
  total = mass.sum(-1).sum(-1)
  if needs.draw:
    kept = mass
    if needs.select or needs.floor:
      keep = _keep(scaled, mass.reshape(len(logits), -1), rules, needs)
      kept = jnp.where(_blocks(keep), mass, 0)
    token = _invert(_uniforms(keys, index), kept)
    if needs.argmax:
      token = jnp.where(rules.temperature == 0, _greatest(logits), token)
  else:
    token = _greatest(logits)
  chosen = jnp.take_along_axis(scaled, token[:, None], 1)[:, 0]
  return token.astype(jnp.int32), chosen - jnp.log(total)


def _blocks(x, fill: float = 0):
  padding = ((0, 0), (0, -x.shape[-1] % _BLOCK))
  x = jnp.pad(x, padding, constant_values=fill)
  return x.reshape(len(x), -1, _BLOCK)


def _greatest(logits):
  """argmax(-1), by blocks: XLA on a CPU takes far longer for a whole row."""
  blocks = _blocks(logits, -jnp.inf)
  block = blocks.max(-1).argmax(-1)
  inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
  return block * _BLOCK + inside.argmax(-1)


def _uniforms(keys, index):
  """Two numbers in [0, 1) per row, [B, 2]."""
  # A folded key is words of noise already; drawing from it would hash again.
  fold = lambda key: jax.random.key_data(jax.random.fold_in(key, index))
  words = jax.vmap(fold)(keys)[:, :2]
  return (words >> 8).astype(jnp.float32) * 2.0**-24


def _invert(uniform, mass):
  # A uniform for each level: the remainder of a single one would keep few of
  # its 24 bits, and tokens in the tail would get a share of 0 or of 2^-24.
  block = _first_above(mass.sum(-1), uniform[:, 0])
  inside = jnp.take_along_axis(mass, block[:, None, None], 1)[:, 0]
  return block * _BLOCK + _first_above(inside, uniform[:, 1])


def _first_above(mass, uniform):
  """First entry with mass whose cumulative share exceeds the uniform."""
  # Cumulative sums in float32 may stall, shrink, or end below the target, so
  # an entry must have mass itself, and the last that has is the last resort.
  cumulative = jnp.cumsum(mass, -1)
  some = mass > 0
  above = some & (cumulative > (uniform * cumulative[:, -1])[:, None])
  last = mass.shape[-1] - 1 - some[:, ::-1].argmax(-1)
  return jnp.where(above.any(-1), above.argmax(-1), last)


def _keep(scaled, mass, rules, needs):
  keep = jnp.ones(scaled.shape, bool)
  if needs.select:
    mass = mass[:, : scaled.shape[1]]
    order = _ordered(scaled)
    top_k = jnp.where(rules.top_k > 0, rules.top_k, scaled.shape[1])
    goal = jnp.minimum(top_k, scaled.shape[1]).astype(jnp.float32)
    keep &= order >= _threshold(order, jnp.ones_like(mass), goal)[:, None]
    mass = jnp.where(keep, mass, 0)
    cut = _threshold(order, mass, rules.top_p * mass.sum(-1))
    # Rounding must not cut the tail of a row that asks for all of it.
    keep &= (order >= cut[:, None]) | (rules.top_p >= 1)[:, None]
  if needs.floor:
    keep &= jnp.exp(scaled) >= rules.min_p[:, None]
  return keep


def _ordered(x):
  """Unsigned integers in the order of the floats they stand for."""
  x = jnp.where(x == 0, 0.0, x)  # -0 and 0 are one number
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits >= sign, ~bits, bits | sign)


def _threshold(order, weights, goal):
  """Greatest [B] with sum(weights of order >= it) >= goal, bit by bit.

  32 passes find it exactly; sorting a vocabulary takes longer.
  """

  def set_bit(i, threshold):
    tried = threshold | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
    weight = jnp.where(order >= tried[:, None], weights, 0).sum(-1)
    return jnp.where(weight >= goal, tried, threshold)

  start = jnp.zeros(len(order), jnp.uint32)
  return jax.lax.fori_loop(0, 32, set_bit, start)
