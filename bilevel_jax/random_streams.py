"""The streams of random numbers of a run: one seed, no two streams alike."""

import enum

import jax


class Stream(enum.IntEnum):
  """What random numbers are for; a stream is the seed's key folded with it."""

  WEIGHTS = 0
  ADAPTER = 1
  ROLLOUT = 2
  EVALUATION = 3
  METHOD = 4
  FACTORS = 5

  def key(
    self, seed: int, step: jax.typing.ArrayLike | None = None
  ) -> jax.Array:
    """Returns the stream's key, or that of one step of it.

    Args:
      step: [] integer.
    """
    key = jax.random.fold_in(jax.random.key(seed), self)
    return key if step is None else jax.random.fold_in(key, step)
