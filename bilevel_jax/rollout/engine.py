"""Completions of prompts: synchronous waves that shrink as rows finish.

A wave is a batch of rows that decode in step, so that all write to one
column of their cache. Each of its prompts is prefilled once, all but the last
token, left-padded to one of few sizes; the cache is copied to the samples;
then segments of a few dozen steps run on the device. Between segments the
host collects the tokens, and where half of the rows have finished it gathers
the others into a smaller batch; the cache gains columns as they are needed.

None of this can be seen in the tokens: each is sampled with a key folded from
(requests.key, prompt id, sample, index of the token among those sampled).
docs/rollouts.md says more, with what was measured.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from bilevel_jax import errors, types
from bilevel_jax.rollout import cache as caches
from bilevel_jax.rollout import (
  checks,
  decoding,
  endings,
  sampling,
  sizes,
)
from bilevel_jax.rollout.row_sharding import RowSharding

programs = decoding.programs


class Segment(NamedTuple):
  """What one run of the decoding loop did: its size, and what came of it."""

  rows: int  # decoded, those that had finished or only fill it included
  columns: int  # of the cache
  steps: int  # taken before no row ran, or the segment was over
  tokens: int  # that came of rows * steps
  cache_bytes: int
  so_far: types.Rollout  # still written into; -1 is a reason not known yet


class _Settings(NamedTuple):
  max_rows: int
  segment: int
  cache_step: int
  prefill_tokens: int
  row_sharding: RowSharding
  decode: endings.Decode | None
  watch: Callable[[Segment], object] | None


def generate(
  policy: types.Policy,
  weights: types.Tree,
  requests: types.Requests,
  *,
  decode: endings.Decode | None = None,
  max_rows: int = 1024,
  segment: int = 32,
  cache_bytes: int | None = None,
  cache_step: int = 64,
  prefill_tokens: int = 8192,
  sharding: jax.sharding.NamedSharding | None = None,
  watch: Callable[[Segment], object] | None = None,
) -> types.Rollout:
  """Returns G completions of each prompt.

  A row ends with "stop" at the first token of `requests.eos_ids`, which is
  part of it, or at the token that completes the first string of
  `requests.stop` in its text; with "length" at `max_new_tokens`; with
  "error", and without a token for it, at logits that hold NaN or +inf.

  `requests.total_tokens` bounds the completions together: where they would
  have more, all are cut at one length, the greatest that keeps the bound.
  Short ones are not touched, and groups keep their samples.

  A completion begins with its own of `requests.prefixes`, which counts as part
  of it in everything but `logprobs`. A prefix with an end in it, or that fills
  the budget, is cut there and is the whole completion.

  The tokens of a request depend on the weights, its prompt, its sampling
  rules and (key, prompt id, sample) alone, up to the rounding of `policy`.
  Programs are compiled for a policy: make it once.

  Args:
    requests: P prompts, G samples of each.
    decode: tokens -> text; needed for `requests.stop` alone.
    max_rows: rows decoded at once; more are decoded in several waves.
    segment: decoding steps between two looks of the host.
    cache_bytes: bound on the cache of a wave on one device, kept by decoding
      fewer rows at once. None: none.
    cache_step: columns that a cache gains at least when it grows; a power of
      two.
    prefill_tokens: prompt tokens, padding included, in one forward pass.
    sharding: of an array of rows, over the devices. None: one device.
    watch: called after each segment, for progress and measurements.

  Raises:
    ConfigError: a request that cannot be met.
  """
  row_sharding = RowSharding(sharding)
  rules = checks.checked(policy, requests, decode)
  checks.sizes(
    max_rows=max_rows, segment=segment, prefill_tokens=prefill_tokens
  )
  if cache_step < 1 or cache_step & (cache_step - 1):
    raise errors.ConfigError(
      f"cache_step must be a power of two, got {cache_step}"
    )
  # Every device gets as many rows.
  each = max(max_rows // row_sharding.shards, 1)
  if cache_bytes is not None:
    given = np.array([len(p) for p in requests.prefixes or [()]])
    fit = rows_that_fit(
      policy,
      max(map(len, requests.prompts), default=1) + int(given.max(initial=0)),
      int(requests.budgets.max(initial=1) - given.min(initial=0)),
      cache_bytes,
      cache_step=cache_step,
    )
    each = min(each, fit)
  max_rows = each * row_sharding.shards
  settings = _Settings(
    max_rows, segment, cache_step, prefill_tokens, row_sharding, decode, watch
  )
  total = len(requests.prompts) * requests.samples_per_prompt
  shape = (total, int(np.max(requests.max_new_tokens, initial=1)))
  rollout = types.Rollout(
    requests=requests,
    tokens=np.zeros(shape, np.int32),
    lengths=np.zeros(total, np.int32),
    logprobs=np.zeros(shape, np.float32),
    finish_reasons=np.full(total, decoding.RUNNING, np.int8),
  )
  endings.begin(rollout, decode)
  for ids in _waves(requests, max_rows):
    _decode_wave(policy, weights, rollout, rules, ids, settings)
  most = _common_budget(rollout)
  running = rollout.finish_reasons == decoding.RUNNING  # to that length
  over = np.flatnonzero(running | (rollout.lengths > most))
  endings.cut(rollout, over, most, decoding.LENGTH)
  return rollout


def rows_that_fit(
  policy: types.Policy,
  prompt_tokens: int,
  new_tokens: int,
  cache_bytes: int,
  *,
  cache_step: int = 64,
) -> int:
  """Returns the rows that a cache of so many bytes can hold.

  Raises:
    ConfigError: it cannot hold one row.
  """
  columns = cache_columns(prompt_tokens, new_tokens, cache_step=cache_step)
  row = caches.bytes_per_row(policy, columns)
  if row > cache_bytes:
    raise errors.ConfigError(
      f"the KV cache may take {cache_bytes} bytes, but must hold one row of "
      f"{columns} columns, which takes {row}"
    )
  return cache_bytes // row


def cache_columns(
  prompt_tokens: int, new_tokens: int, *, cache_step: int = 64
) -> int:
  """Returns the columns of a cache that holds a prompt and its completion."""
  return sizes.columns(_prompt_columns(prompt_tokens) + new_tokens, cache_step)


def _prompt_columns(length):
  # Of all tokens but the last, which is the first input of decoding.
  return sizes.columns(length - 1)


def _waves(requests: types.Requests, max_rows: int) -> Iterator[np.ndarray]:
  """Rows of each wave: whole groups if they fit, those that may grow longest
  first, so that rows of a wave are alike."""
  group = requests.samples_per_prompt
  lengths = np.array([len(prompt) for prompt in requests.prompts], int)
  order = np.argsort(-(lengths + requests.budgets), kind="stable")
  rows = (order[:, None] * group + np.arange(group)[None]).ravel()
  size = max_rows // group * group or max_rows
  for start in range(0, len(rows), size):
    yield rows[start : start + size]


def _decode_wave(policy, weights, rollout, rules, ids, settings) -> None:
  """Fills in the rows `ids` of the rollout."""
  requests, row_sharding = rollout.requests, settings.row_sharding
  of = ids // requests.samples_per_prompt
  budgets = np.minimum(requests.budgets[of], _common_budget(rollout))
  given = rollout.lengths[ids]
  whole = rollout.finish_reasons[ids] != decoding.RUNNING
  left = np.flatnonzero(~whole & (given < budgets))
  if not len(left):
    return
  ids, of, budgets, given = ids[left], of[left], budgets[left], given[left]
  prompts = [
    np.concatenate([requests.prompts[p], rollout.tokens[n, :length]])
    for n, p, length in zip(ids, of, given, strict=True)
  ]
  lengths = np.array([len(prompt) for prompt in prompts])
  begin = _prompt_columns(int(lengths.max()))
  samples = ids % requests.samples_per_prompt + requests.first_sample
  keys = decoding.row_keys(
    requests.key,
    np.asarray(requests.prompt_ids)[of].astype(np.uint32),
    samples.astype(np.uint32),
  )
  rows = decoding.Rows(
    token=np.array([prompt[-1] for prompt in prompts], np.int32),
    first=np.array(begin + 1 - lengths, np.int32),
    end=np.array(begin + budgets - given, np.int32),
    key_data=np.asarray(jax.random.key_data(keys)),
    rules=_take(rules, of),
  )
  needs = sampling.needs(rows.rules)
  eos_ids = sorted(set(requests.eos_ids))
  eos_ids += [-1] * (8 - len(eos_ids) % 8)  # a set of another size compiles not

  cache, slots = _prefilled(policy, weights, prompts, settings)
  size, columns, column = 0, 0, begin
  while len(ids):
    stop = min(column + settings.segment, int(rows.end.max()))
    smaller = min(_rows(len(ids), row_sharding), settings.max_rows)
    longer = sizes.columns(stop, settings.cache_step)
    if longer > columns or 2 * smaller <= size:
      size, columns = smaller, max(columns, longer)
      source = np.zeros(size, np.int32)
      source[: len(ids)] = slots
      cache = caches.move(
        cache,
        row_sharding.put_rows(source),
        columns,
        axes=caches.column_axes(policy),
        row_sharding=row_sharding,
      )
      slots = np.arange(len(ids))
    running = np.zeros(size, bool)
    running[slots] = True
    request = np.zeros(size, np.int32)  # slots that do not run copy the first
    request[slots] = np.arange(len(ids))
    cache, outcome = decoding.decode(
      policy,
      weights,
      cache,
      *row_sharding.put_rows((_take(rows, request), running)),
      decoding.Span(*map(np.int32, (begin, column, stop))),
      np.array(eos_ids, np.int32),
      key_impl=jax.random.key_impl(requests.key),
      needs=needs,
      length=settings.segment,
      row_sharding=row_sharding,
    )
    outcome = jax.device_get(outcome)
    _, tokens, logprobs, kept, finish = outcome
    steps, known = stop - column, rollout.lengths[ids]
    row, step = np.nonzero(np.arange(steps) < kept[slots][:, None])
    written = ids[row], known[row] + step
    rollout.tokens[written] = tokens[slots[row], step]
    rollout.logprobs[written] = logprobs[slots[row], step]
    rollout.lengths[ids] += kept[slots]
    rollout.finish_reasons[ids] = finish[slots]
    if requests.stop:
      _stop_at_strings(rollout, ids, known, settings.decode)
    if settings.watch is not None:
      held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
      settings.watch(
        Segment(
          rows=size,
          columns=columns,
          steps=int(outcome.steps),
          tokens=int(kept.sum()),
          cache_bytes=held,
          so_far=rollout,
        )
      )
    end = np.minimum(rows.end, begin + _common_budget(rollout) - given)
    rows = dataclasses.replace(rows, token=tokens[slots, steps - 1], end=end)
    running = rollout.finish_reasons[ids] == decoding.RUNNING
    left = np.flatnonzero(running & (end > stop))
    ids, given, slots = ids[left], given[left], slots[left]
    rows, column = _take(rows, left), stop


def _stop_at_strings(rollout, ids, known, decode) -> None:
  """Cuts the rows `ids` at stop strings that are not in their known tokens."""
  for row, first in zip(ids, known, strict=True):
    tokens = rollout.tokens[row, : rollout.lengths[row]]
    length = endings.stopped_at(tokens, first, rollout.requests.stop, decode)
    if length is not None:
      endings.cut(rollout, row, length, decoding.STOP)


def _common_budget(rollout) -> int:
  """The length that no completion may exceed, by all the tokens so far."""
  total, most = rollout.requests.total_tokens, rollout.tokens.shape[1]
  if total is None:
    return most
  return endings.common_budget(rollout.lengths, total, most)


def _take(tree, rows):
  return jax.tree.map(lambda x: x[rows], tree)


def _rows(n, row_sharding):
  return row_sharding.shards * sizes.ladder(-(-n // row_sharding.shards))


def _prefilled(policy, weights, prompts, settings):
  """A cache with all tokens but the last, and which of its rows is whose."""
  row_sharding, most = settings.row_sharding, settings.prefill_tokens
  known: dict[bytes, int] = {}
  slots = [known.setdefault(p[:-1].tobytes(), len(known)) for p in prompts]
  columns = _prompt_columns(max(map(len, prompts)))
  rows = _rows(len(known), row_sharding)
  tokens = np.zeros((rows, columns), np.int32)
  first = np.full(rows, columns, np.int32)
  for row, text in enumerate(known):
    prefix = np.frombuffer(text, np.int32)
    first[row] = columns - len(prefix)
    tokens[row, first[row] :] = prefix
  # Columns go in chunks, rows in pieces: powers of two that divide them.
  chunks = _power_of_two(columns / most, divides=columns)
  pieces = _power_of_two(
    rows * columns / (chunks * most), divides=rows // row_sharding.shards
  )
  cache = decoding.prefill(
    policy,
    weights,
    *row_sharding.put_rows(
      (tokens.reshape(pieces, -1, columns), first.reshape(pieces, -1)), axis=1
    ),
    chunks=chunks,
    row_sharding=row_sharding,
  )
  return cache, np.array(slots)


def _power_of_two(at_least, *, divides):
  n = 1
  while n < at_least and divides % (2 * n) == 0:
    n *= 2
  return n
