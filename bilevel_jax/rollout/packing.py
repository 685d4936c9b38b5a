"""Where a batch's tokens are computed, so that few columns hold none.

A rectangle with one sequence a row is mostly padding where lengths differ, and
computes a prompt once for each of its samples. Here a row holds as many
sequences as fit. Those with the same tokens before their first log-prob share
them: a shared prefix, and a continuation for each. Nothing is computed that no
weighted log-prob needs.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from bilevel_jax.rollout import sizes
from bilevel_jax.types import PackedRows, TokenBatch

_Batch = TypeVar("_Batch", bound=TokenBatch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
  """How rows are filled."""

  micro_batch_tokens: int | None = None
  """Of a forward pass on each device; None: all at once."""
  row_tokens: int = 16
  """Columns of a row, at least; a longer sequence makes them more."""
  row_multiple: int = 1
  """Devices that rows are spread over."""
  several: bool = True
  """Sequences in a row; an attention kernel that takes no segments wants one,
  and no shared prefix."""
  log_prob_sizes: int = 4
  """Sizes that a device's log-probs come in, each a program; with 1 they are as
  many as its columns, whatever is wanted."""

  def log_probs(self, columns: int, wanted: int) -> int:
    """Returns K, the log-probs that a device can hold."""
    size = -(-columns // self.log_prob_sizes)
    return max(_up(wanted, size), size)


class _PrefixGroup(NamedTuple):
  """Sequences of one row with a shared prefix."""

  prefix: np.ndarray  # int32
  members: list[int]  # rows of the batch
  cost: int  # columns


class _Spans(NamedTuple):
  """Which tokens get a log-prob: of row b, from first[b] to last[b]."""

  needed: np.ndarray  # [B, T] bool
  first: np.ndarray  # [B]
  last: np.ndarray  # [B]


def pack(batch: _Batch, packing: Packing) -> _Batch:
  """Returns the batch with its rows packed.

  Few shapes, so few compilations: rows of a forward pass are a number of a
  ladder with two steps an octave, or with micro-batches one that the columns
  determine; for log-probs see `Packing.log_prob_sizes`.

  Args:
    batch: B rows of one right-padded sequence each, on the host. A token with
      a weight gets its log-prob; a row without any is left out.
  """
  needed = np.asarray(batch.weights) != 0
  needed[:, 0] = False  # nothing precedes it
  spans = _Spans(
    needed,
    needed.argmax(axis=1),
    needed.shape[1] - 1 - needed[:, ::-1].argmax(axis=1),
  )
  tokens = np.asarray(batch.tokens)
  # A sequence's last token is predicted, and predicts nothing.
  longest = int(spans.last.max(initial=0, where=needed.any(axis=1)))
  columns = max(sizes.columns(longest), packing.row_tokens)
  groups = _prefix_groups(tokens, spans, columns, packing.several)
  costs = [group.cost for group in groups]
  if packing.several:
    rows = _fill(costs, columns)
  else:
    rows = [[number] for number in range(len(groups))]
  per_pass, passes = forward_passes(len(rows), len(tokens), columns, packing)
  each = per_pass // packing.row_multiple  # of a device
  pairs = np.zeros(-(-len(rows) // each), int)
  for number, row in enumerate(rows):
    for group in row:
      pairs[number // each] += int(needed[groups[group].members].sum())
  scored = packing.log_probs(each * columns, int(pairs.max(initial=0)))
  packed = _written(
    tokens,
    spans,
    [[groups[number] for number in row] for row in rows],
    (passes, packing.row_multiple, each, columns, scored),
  )
  if not packing.several:
    packed = dataclasses.replace(packed, continuations=None)
  return dataclasses.replace(batch, packed=packed)


def padding_share(batches: Sequence[TokenBatch]) -> float:
  """Returns the share of the columns computed for batches that hold no token.

  Args:
    batches: that are packed, on the host.
  """
  found = [batch.packed for batch in batches if batch.packed is not None]
  computed = sum(int(x.used) * x.tokens[0].size for x in found)
  return 1.0 - held(batches) / max(computed, 1)


def held(batches: Sequence[TokenBatch]) -> int:
  """Returns the tokens that are computed for batches, shared ones once."""
  found = [batch.packed for batch in batches if batch.packed is not None]
  return sum(int(np.count_nonzero(x.segment_ids)) for x in found)


def _prefix_groups(
  tokens: np.ndarray, spans: _Spans, columns: int, several: bool
) -> list[_PrefixGroup]:
  """Sequences with the same tokens before their first log-prob, together."""
  alike: dict[bytes, list[int]] = {}
  for row in np.flatnonzero(spans.needed.any(axis=1)):
    shared = tokens[row, : spans.first[row]] if several else row
    alike.setdefault(shared.tobytes(), []).append(int(row))
  own = spans.last - spans.first
  found = []
  for members in alike.values():
    prefix = tokens[members[0], : spans.first[members[0]]]
    space = columns - len(prefix)
    for some in _fill([int(own[row]) for row in members], space):
      chosen = [members[i] for i in some]
      cost = len(prefix) + int(own[chosen].sum())
      found.append(_PrefixGroup(prefix, chosen, cost))
  return found


def _fill(costs: Sequence[int], capacity: int) -> list[list[int]]:
  """Best fit, the largest first: bins of indices, each of cost <= capacity."""
  bins: list[list[int]] = []
  left: list[tuple[int, int]] = []  # space, bin; in order
  for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
    place = bisect.bisect_left(left, (costs[index], -1))
    if place == len(left):
      space, number = capacity, len(bins)
      bins.append([])
    else:
      space, number = left.pop(place)
    bins[number].append(index)
    bisect.insort(left, (space - costs[index], number))
  return bins


def forward_passes(
  rows: int, most: int, columns: int, packing: Packing
) -> tuple[int, int]:
  """Returns the rows of a forward pass, and the passes that there may be.

  Args:
    rows: that sequences were packed into.
    most: that they might have needed: sequences.
  """
  multiple = packing.row_multiple
  if packing.micro_batch_tokens is None:
    return _up(sizes.ladder(rows), multiple), 1
  per_pass = multiple * max(packing.micro_batch_tokens // columns, 1)
  per_pass = min(per_pass, _up(most, multiple))
  return per_pass, -(-most // per_pass)


def _written(
  tokens: np.ndarray,
  spans: _Spans,
  rows: list[list[_PrefixGroup]],
  shape: tuple[int, int, int, int, int],
) -> PackedRows:
  """Writes the groups of each row one after the other."""
  passes, devices, each, columns, scored = shape
  zeros = lambda *shape: np.zeros((passes * devices, *shape), np.int32)
  continuations = zeros(each, columns)
  out = PackedRows(
    tokens=zeros(each, columns),
    positions=zeros(each, columns),
    segment_ids=zeros(each, columns),
    continuations=continuations,
    columns=zeros(scored),
    targets=zeros(scored),
    where=np.full(spans.needed.shape, -1, np.int32),
    used=np.asarray(-(-len(rows) // (devices * each)), np.int32),
  )
  pair = 0
  for number, row in enumerate(rows):
    device, own_row = divmod(number, each)
    pair = pair if own_row else 0
    start = 0
    for segment, group in enumerate(row, start=1):
      shared = len(group.prefix)
      place = device, own_row, slice(start, start + shared)
      out.tokens[place] = group.prefix
      out.positions[place] = np.arange(shared)
      at = start + shared
      for continuation, member in enumerate(group.members, start=1):
        own = tokens[member, shared : spans.last[member]]
        place = device, own_row, slice(at, at + len(own))
        out.tokens[place] = own
        out.positions[place] = shared + np.arange(len(own))
        continuations[place] = continuation
        predicted = np.flatnonzero(spans.needed[member])
        before = predicted - 1  # in the sequence; then in the row
        before = np.where(before < shared, start + before, at + before - shared)
        pairs = slice(pair, pair + len(predicted))
        out.columns[device, pairs] = own_row * columns + before
        out.targets[device, pairs] = tokens[member, predicted]
        out.where[member, predicted] = device * scored + np.arange(
          pairs.start, pairs.stop
        )
        at, pair = at + len(own), pairs.stop
      out.segment_ids[device, own_row, start:at] = segment
      start = at
  computed = lambda x: x.reshape(passes, devices * each, columns)
  predicted = lambda x: x.reshape(passes, devices, scored)
  return dataclasses.replace(
    out,
    tokens=computed(out.tokens),
    positions=computed(out.positions),
    segment_ids=computed(out.segment_ids),
    continuations=computed(continuations),
    columns=predicted(out.columns),
    targets=predicted(out.targets),
  )


def _up(count: int, multiple: int) -> int:
  return -(-count // multiple) * multiple
