"""Completions of prompts: synchronous waves that shrink as rows finish.

A wave is a batch of rows that decode in step, so that all write to one
column of their cache. Each of its prompts is prefilled once, all but the last
token, left-padded to a bucket of columns; the cache is copied to the samples;
then segments of a few dozen steps run on the device. Between segments the
host collects the tokens, and where half of the rows have finished it gathers
the others into a smaller batch; the cache gains columns as they are needed.

None of this can be seen in the tokens: each is drawn with a key folded from
(requests.key, prompt id, sample, index of the token).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from bilevel_jax import types
from bilevel_jax.rollout import cache as caches
from bilevel_jax.rollout import decoding, sampling
from bilevel_jax.rollout import layout as layouts


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
  layout: layouts.Layout
  watch: Callable[[Segment], object] | None


def generate(
  policy: types.Policy,
  weights: types.Tree,
  requests: types.Requests,
  *,
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
  part of it; with "length" at `max_new_tokens`; with "error", and without a
  token for it, at logits that hold NaN or +inf.

  The tokens of a request depend on the weights, its prompt, its sampling
  rules and (key, prompt id, sample) alone, up to the rounding of `policy`.
  Programs are compiled for a policy: make it once.

  Args:
    policy: the architecture.
    weights: what `policy.merge` returned.
    requests: P prompts, G samples of each.
    max_rows: rows decoded at once; more are decoded in several waves.
    segment: decoding steps between two looks of the host.
    cache_bytes: bound on the cache of a wave, kept by fewer rows. None: none.
    cache_step: columns that a cache gains at least when it grows; a power of
      two.
    prefill_tokens: prompt tokens, padding included, in one forward pass.
    sharding: of an array of rows, over the devices. None: one device.
    watch: called after each segment, for progress and measurements.

  Raises:
    ValueError: a request that cannot be met.
  """
  layout = layouts.Layout(sharding)
  rules = _checked(policy, requests)
  _check_sizes(
    max_rows=max_rows, segment=segment, prefill_tokens=prefill_tokens
  )
  if cache_step < 1 or cache_step & (cache_step - 1):
    raise ValueError(f"cache_step must be a power of two, got {cache_step}")
  if cache_bytes is not None:
    fit = _rows_that_fit(policy, requests, cache_bytes, cache_step)
    max_rows = min(max_rows, fit)
  # Every device gets as many rows.
  max_rows = max(max_rows // layout.shards, 1) * layout.shards
  settings = _Settings(
    max_rows, segment, cache_step, prefill_tokens, layout, watch
  )
  total = len(requests.prompts) * requests.samples_per_prompt
  shape = (total, requests.max_new_tokens)
  rollout = types.Rollout(
    requests=requests,
    tokens=np.zeros(shape, np.int32),
    lengths=np.zeros(total, np.int32),
    logprobs=np.zeros(shape, np.float32),
    finish_reasons=np.full(total, decoding.RUNNING, np.int8),
  )
  for ids in _waves(requests, max_rows):
    _decode_wave(policy, weights, rollout, rules, ids, settings)
  return rollout


def _check_sizes(**sizes) -> None:
  for name, value in sizes.items():
    if value < 1:
      raise ValueError(f"{name} must be at least 1, got {value}")


def _checked(policy, requests) -> sampling.Rules:
  """The sampling rules of each prompt."""
  _check_sizes(
    max_new_tokens=requests.max_new_tokens,
    samples_per_prompt=requests.samples_per_prompt,
  )
  prompts = len(requests.prompts)
  if np.shape(requests.prompt_ids) != (prompts,):
    raise ValueError(
      f"prompt_ids must name each of the {prompts} prompts, "
      f"got shape {np.shape(requests.prompt_ids)}"
    )
  for i, prompt in enumerate(map(np.asarray, requests.prompts)):
    if prompt.size == 0:
      raise ValueError(f"prompt {i} is empty: it needs a token to start from")
    outside = prompt[(prompt < 0) | (prompt >= policy.vocab_size)]
    if outside.size:
      raise ValueError(
        f"prompt {i} holds token {outside[0]}, which is outside the "
        f"vocabulary of {policy.vocab_size}"
      )
  return sampling.rules(requests.sampling, prompts)


def _prompt_columns(length):
  # Of all tokens but the last, which is the first input of decoding.
  return caches.bucket(length - 1, step=16, per_octave=4)


def _columns(n, cache_step):
  return caches.bucket(n, step=cache_step, per_octave=4)


def _rows_that_fit(policy, requests, cache_bytes, cache_step):
  begin = _prompt_columns(max(map(len, requests.prompts), default=1))
  columns = _columns(begin + requests.max_new_tokens, cache_step)
  row = caches.bytes_per_row(policy, columns)
  if row > cache_bytes:
    raise ValueError(
      f"cache_bytes must hold one row of {columns} columns, which takes "
      f"{row} bytes, got {cache_bytes}"
    )
  return cache_bytes // row


def _waves(requests: types.Requests, max_rows: int) -> Iterator[np.ndarray]:
  """Rows of each wave: whole groups if they fit, longest prompts first."""
  group = requests.samples_per_prompt
  lengths = np.array([len(prompt) for prompt in requests.prompts], int)
  order = np.argsort(-lengths, kind="stable")
  rows = (order[:, None] * group + np.arange(group)[None]).ravel()
  size = max_rows // group * group or max_rows
  for start in range(0, len(rows), size):
    yield rows[start : start + size]


def _decode_wave(policy, weights, rollout, rules, ids, settings) -> None:
  """Fills in the rows `ids` of the rollout."""
  requests, layout = rollout.requests, settings.layout
  prompts = [np.asarray(p, np.int32) for p in requests.prompts]
  of = ids // requests.samples_per_prompt
  begin = _prompt_columns(max(len(prompts[p]) for p in of))
  end = begin + requests.max_new_tokens
  keys = decoding.row_keys(
    requests.key,
    np.asarray(requests.prompt_ids)[of].astype(np.uint32),
    (ids % requests.samples_per_prompt).astype(np.uint32),
  )
  rows = decoding.Rows(
    token=np.array([prompts[p][-1] for p in of]),
    first=np.array([begin + 1 - len(prompts[p]) for p in of], np.int32),
    key_data=np.asarray(jax.random.key_data(keys)),
    rules=_take(rules, of),
  )
  needs = sampling.needs(rows.rules)
  eos_ids = np.array(sorted(set(requests.eos_ids)) or [-1], np.int32)

  cache, slots = _prefilled(policy, weights, [prompts[p] for p in of], settings)
  size, columns, column = 0, 0, begin
  while len(ids):
    stop = min(column + settings.segment, end)
    smaller = min(_rows(len(ids), layout), settings.max_rows)
    longer = _columns(stop, settings.cache_step)
    if longer > columns or 2 * smaller <= size:
      size, columns = smaller, max(columns, longer)
      source = np.zeros(size, np.int32)
      source[: len(ids)] = slots
      cache = caches.move(
        cache, layout.put_rows(source), columns, layout=layout
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
      *layout.put_rows((_take(rows, request), running)),
      decoding.Span(*map(np.int32, (begin, column, stop, end))),
      eos_ids,
      key_impl=jax.random.key_impl(requests.key),
      needs=needs,
      length=settings.segment,
      layout=layout,
    )
    outcome = jax.device_get(outcome)
    _, tokens, logprobs, kept, finish = outcome
    written, steps = slice(column - begin, stop - begin), stop - column
    rollout.tokens[ids, written] = tokens[slots, :steps]
    rollout.logprobs[ids, written] = logprobs[slots, :steps]
    rollout.lengths[ids] += kept[slots]
    rollout.finish_reasons[ids] = finish[slots]
    if settings.watch is not None:
      held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
      taken, got = int(outcome.steps), int(kept.sum())
      settings.watch(Segment(size, columns, taken, got, held, rollout))
    rows = dataclasses.replace(rows, token=tokens[slots, steps - 1])
    left = np.flatnonzero(finish[slots] == decoding.RUNNING)
    ids, slots, rows, column = ids[left], slots[left], _take(rows, left), stop


def _take(tree, rows):
  return jax.tree.map(lambda x: x[rows], tree)


def _rows(n, layout):
  return layout.shards * caches.bucket(-(-n // layout.shards))


def _prefilled(policy, weights, prompts, settings):
  """A cache with all tokens but the last, and which of its rows is whose."""
  layout, most = settings.layout, settings.prefill_tokens
  known: dict[bytes, int] = {}
  slots = [known.setdefault(p[:-1].tobytes(), len(known)) for p in prompts]
  columns = _prompt_columns(max(map(len, prompts)))
  rows = _rows(len(known), layout)
  tokens = np.zeros((rows, columns), np.int32)
  first = np.full(rows, columns, np.int32)
  for row, text in enumerate(known):
    prefix = np.frombuffer(text, np.int32)
    first[row] = columns - len(prefix)
    tokens[row, first[row] :] = prefix
  # Columns go in chunks, rows in pieces: powers of two that divide them.
  chunks = _power_of_two(columns / most, divides=columns)
  pieces = _power_of_two(
    rows * columns / (chunks * most), divides=rows // layout.shards
  )
  cache = decoding.prefill(
    policy,
    weights,
    *layout.put_rows(
      (tokens.reshape(pieces, -1, columns), first.reshape(pieces, -1)), axis=1
    ),
    chunks=chunks,
    layout=layout,
  )
  return cache, np.array(slots)


def _power_of_two(at_least, *, divides):
  n = 1
  while n < at_least and divides % (2 * n) == 0:
    n *= 2
  return n
