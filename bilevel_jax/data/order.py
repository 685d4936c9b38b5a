"""In which order a stream takes its examples, by its position alone."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

Parts: TypeAlias = Sequence[tuple[np.ndarray, float]]
"""The examples of each part, at least one, and its share of what is left by the
parts before it; the last one has all of that."""


def of_epochs(
  size: int,
  start: int,
  count: int,
  seed: int,
  ranks: np.ndarray | None = None,
) -> np.ndarray:
  """Returns [count] int64, the examples at positions start to start + count.

  Args:
    size: examples in the stream, at least 1.
    seed: of the order; each epoch is a permutation of its own.
    ranks: [size] numbers; in each epoch the smaller ones come first, and equal
      ones as the permutation has them. None: all are equal.
  """
  positions = np.arange(start, start + count)
  indices = np.empty(count, np.int64)
  for epoch in np.unique(positions // size):
    permutation = np.random.default_rng([seed, epoch]).permutation(size)
    if ranks is not None:
      permutation = permutation[np.argsort(ranks[permutation], kind="stable")]
    rows = positions // size == epoch
    indices[rows] = permutation[positions[rows] % size]
  return indices


def of_parts(
  parts: Parts,
  start: int,
  count: int,
  seed: int,
  ranks: np.ndarray | None = None,
) -> np.ndarray:
  """Returns [count] int64, examples of several parts by their shares.

  Of any n positions in a row, share * n rounded down or up are of the first
  part; what is left is shared among the others in the same way. Each part has
  epochs of its own.

  Args:
    seed: of the order; each epoch is a permutation of its own.
    ranks: [examples of all parts] numbers, as for `of_epochs`.
  """

  def of_part(examples: np.ndarray, start: int, count: int) -> np.ndarray:
    own = None if ranks is None else ranks[examples]
    return examples[of_epochs(len(examples), start, count, seed, own)]

  (examples, share), *others = parts
  if not others:
    return of_part(examples, start, count)
  positions = np.arange(start, start + count + 1)
  before = np.floor(share * positions).astype(np.int64)
  is_first = np.diff(before) > 0
  indices = np.empty(count, np.int64)
  first = int(is_first.sum())
  if first:
    indices[is_first] = of_part(examples, int(before[0]), first)
  if first < count:
    indices[~is_first] = of_parts(
      others, start - int(before[0]), count - first, seed, ranks
    )
  return indices


def _shares_of_rest(shares: Sequence[float]) -> list[float]:
  """Each share, above 0, of what those before it leave."""
  left = np.cumsum(np.asarray(shares, float)[::-1])[::-1]
  return list(shares / left)


def parts(members: Sequence[int], shares: Sequence[float]) -> Parts:
  """Returns the parts that shares are given to.

  Args:
    members: [n], the part of each example, from 0.
    shares: of the parts, at least 0; those of the parts that have an example
      are not all 0.
  """
  examples = [
    np.flatnonzero(np.asarray(members) == part) for part in range(len(shares))
  ]
  there = [
    part
    for part, share in enumerate(shares)
    if share > 0 and len(examples[part])
  ]
  of_rest = _shares_of_rest([shares[part] for part in there])
  return [
    (examples[part], share) for part, share in zip(there, of_rest, strict=True)
  ]
