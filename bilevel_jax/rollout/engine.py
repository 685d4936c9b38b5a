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

import collections
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import types
from bilevel_jax.rollout import cache as caches
from bilevel_jax.rollout import sampling

STOP, LENGTH, ERROR = range(len(types.FINISH_REASONS))
_RUNNING = -1
_compiled: collections.Counter[str] = collections.Counter()


class Segment(NamedTuple):
  """What one run of the decoding loop did: its size, and what came of it."""

  rows: int  # decoded, those that had finished or never were included
  columns: int  # of the cache
  steps: int  # taken before the last row finished, or the segment was over
  tokens: int  # kept
  cache_bytes: int


class _Settings(NamedTuple):
  """What is fixed during a call of `generate`."""

  max_rows: int
  segment: int
  step: int
  prefill_tokens: int
  sharding: jax.sharding.NamedSharding | None
  watch: Callable[[Segment], object] | None


@types.pytree
class _Rows:
  """The state and the fixed facts of the rows of a batch, or of a rollout."""

  token: types.Array  # [B] int32, the next input
  first: types.Array  # [B] int32, column of the prompt's first token
  begin: types.Array  # [B] int32, column of the prompt's last token
  end: types.Array  # [B] int32, column at which the budget is spent
  running: types.Array  # [B] bool
  prompt_id: types.Array  # [B] uint32
  sample: types.Array  # [B] uint32
  rules: sampling.Rules


def programs() -> dict[str, int]:
  """Returns how many programs were traced so far, by name.

  Bounded by the sizes that batches come in, two per octave of rows and at
  most four per octave of columns; values of requests never add to it.
  """
  return dict(_compiled)


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
  Programs are compiled once per policy: make it once.

  Args:
    policy: the architecture.
    weights: what `policy.merge` returned.
    requests: P prompts, G samples of each.
    max_rows: rows decoded at once; more are decoded in several waves.
    segment: decoding steps between two looks of the host.
    cache_bytes: bound on the cache of a wave, by fewer rows. None: no bound.
    cache_step: columns that a cache gains at least when it grows.
    prefill_tokens: prompt tokens, padding included, in one forward pass.
    sharding: of an array of rows, over the devices. None: one device.
    watch: called after each segment, for progress and measurements.

  Raises:
    ValueError: a request that cannot be met.
  """
  per_prompt = _checked(policy, requests)
  for name, value in (
    ("max_rows", max_rows),
    ("segment", segment),
    ("cache_step", cache_step),
    ("prefill_tokens", prefill_tokens),
  ):
    if value < 1:
      raise ValueError(f"{name} must be at least 1, got {value}")
  if cache_bytes is not None:
    max_rows = min(
      max_rows, _rows_that_fit(policy, requests, cache_bytes, cache_step)
    )
  settings = _Settings(
    max_rows, segment, cache_step, prefill_tokens, sharding, watch
  )
  samples, budget = requests.samples_per_prompt, requests.max_new_tokens
  total = len(requests.prompts) * samples
  rollout = types.Rollout(
    requests=requests,
    tokens=np.zeros((total, budget), np.int32),
    lengths=np.zeros(total, np.int32),
    logprobs=np.zeros((total, budget), np.float32),
    finish_reasons=np.full(total, _RUNNING, np.int8),
  )
  for ids in _waves(requests, max_rows):
    _decode_wave(policy, weights, rollout, per_prompt, ids, settings)
  return rollout


def _checked(policy, requests) -> sampling.Rules:
  for name in ("max_new_tokens", "samples_per_prompt"):
    if getattr(requests, name) < 1:
      raise ValueError(
        f"{name} must be at least 1, got {getattr(requests, name)}"
      )
  prompts = len(requests.prompts)
  if np.shape(requests.prompt_ids) != (prompts,):
    raise ValueError(
      f"prompt_ids must name each of the {prompts} prompts, "
      f"got shape {np.shape(requests.prompt_ids)}"
    )
  for i, prompt in enumerate(requests.prompts):
    if len(prompt) == 0:
      raise ValueError(f"prompt {i} is empty: it must have a token at least")
    outside = (np.asarray(prompt) < 0) | (
      np.asarray(prompt) >= policy.vocab_size
    )
    if outside.any():
      raise ValueError(
        f"prompt {i} has the token {np.asarray(prompt)[outside][0]}, outside "
        f"the vocabulary of {policy.vocab_size}"
      )
  return sampling.rules(requests.sampling, prompts)


def _rows_that_fit(policy, requests, cache_bytes, cache_step):
  longest = max(map(len, requests.prompts), default=1)
  width = _prompt_columns(longest)
  columns = _columns(width + requests.max_new_tokens, cache_step)
  row = caches.bytes_per_row(policy, columns)
  if row > cache_bytes:
    raise ValueError(
      f"cache_bytes must hold a row of {columns} columns, which takes {row} "
      f"bytes, got {cache_bytes}"
    )
  return cache_bytes // max(row, 1)


def _prompt_columns(length):
  # The last token of a prompt is the first input of decoding.
  return caches.bucket(length - 1, step=16, per_octave=4)


def _columns(n, step):
  return caches.bucket(n, step=step, per_octave=4)


def _waves(requests: types.Requests, max_rows: int) -> Iterator[np.ndarray]:
  """Row numbers of each wave: whole groups, of prompts of like length."""
  samples = requests.samples_per_prompt
  lengths = np.array([len(prompt) for prompt in requests.prompts], int)
  order = np.argsort(-lengths, kind="stable")
  rows = (order[:, None] * samples + np.arange(samples)).ravel()
  size = max_rows - max_rows % samples if max_rows >= samples else max_rows
  for start in range(0, len(rows), size):
    yield rows[start : start + size]


def _decode_wave(policy, weights, rollout, per_prompt, ids, settings) -> None:
  """Fills in the rows `ids` of the rollout."""
  requests, sharding = rollout.requests, settings.sharding
  put = lambda tree: (
    tree if sharding is None else jax.device_put(tree, sharding)
  )
  prompts, source = np.unique(rollout.prompt_index[ids], return_inverse=True)
  width = _prompt_columns(max(len(requests.prompts[p]) for p in prompts))
  cache = _prefilled(policy, weights, requests, prompts, width, settings)
  rows = _wave_rows(requests, per_prompt, ids, width)
  needs = sampling.needs(rows.rules)
  key, eos_ids = _replicated((requests.key, _eos(requests)), sharding)
  column, size, columns = width, 0, 0
  end = width + requests.max_new_tokens
  while len(ids):
    steps = min(settings.segment, end - column)
    wanted = _bucket_of_rows(len(ids), sharding)
    needed = _columns(column + steps, settings.step)
    if 2 * wanted <= size or not size or needed > columns:
      # The rows that are left, then copies of the first, which do nothing.
      size, columns = wanted, max(columns, needed)
      slots = np.zeros(size, np.int32)
      slots[: len(ids)] = source
      cache = caches.move(cache, put(slots), columns, sharding)
      source = np.arange(len(ids))
    batch = np.zeros(size, np.int32)
    batch[source] = np.arange(len(ids))
    empty = np.ones(size, bool)
    empty[source] = False
    table = jax.tree.map(lambda a: a[batch], rows)
    table.running[empty] = False
    cache, *out = _decode(
      policy,
      weights,
      cache,
      put(table),
      key,
      eos_ids,
      np.int32(column),
      np.int32(steps),
      needs=needs,
      length=settings.segment,
      sharding=sharding,
    )
    taken, tokens, logprobs, counts, finish = jax.device_get(out)
    at = slice(column - width, column - width + steps)
    rollout.tokens[ids, at] = tokens[source, :steps]
    rollout.logprobs[ids, at] = logprobs[source, :steps]
    rollout.lengths[ids] += counts[source]
    rollout.finish_reasons[ids] = finish[source]
    if settings.watch is not None:
      held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
      settings.watch(
        Segment(size, columns, int(taken), int(counts.sum()), held)
      )
    left = finish[source] == _RUNNING
    rows.token[:] = tokens[source, steps - 1]
    ids, source = ids[left], source[left]
    rows = jax.tree.map(lambda a, left=left: a[left], rows)
    column += steps


def _shards(sharding):
  if sharding is None:
    return 1
  devices = sharding.num_devices
  return devices // sharding.shard_shape((devices,))[0]


def _bucket_of_rows(n, sharding):
  # Every device gets as many rows.
  shards = _shards(sharding)
  return shards * caches.bucket(-(-n // shards))


def _replicated(tree, sharding):
  if sharding is None:
    return tree
  everywhere = jax.sharding.NamedSharding(
    sharding.mesh, jax.sharding.PartitionSpec()
  )
  return jax.device_put(tree, everywhere)


def _eos(requests):
  return np.array(sorted(requests.eos_ids) or [-1], np.int32)


def _wave_rows(requests, per_prompt, ids, width) -> _Rows:
  prompt = ids // requests.samples_per_prompt
  last = np.array([p[-1] for p in requests.prompts], np.int32)
  lengths = np.array([len(p) for p in requests.prompts], np.int32)
  full = lambda value, dtype: np.full(len(ids), value, dtype)
  return _Rows(
    token=last[prompt],
    first=(width - lengths[prompt] + 1).astype(np.int32),
    begin=full(width, np.int32),
    end=full(width + requests.max_new_tokens, np.int32),
    running=full(True, bool),
    prompt_id=np.asarray(requests.prompt_ids)[prompt].astype(np.uint32),
    sample=(ids % requests.samples_per_prompt).astype(np.uint32),
    rules=jax.tree.map(lambda a: a[prompt], per_prompt),
  )


def _prefilled(policy, weights, requests, prompts, width, settings):
  """Cache of `width` columns: every token of the prompts but the last."""
  rows = _bucket_of_rows(len(prompts), settings.sharding)
  tokens = np.zeros((rows, width), np.int32)
  first = np.full(rows, width, np.int32)
  for row, prompt in enumerate(prompts):
    known = requests.prompts[prompt][:-1]
    first[row] = width - len(known)
    tokens[row, first[row] :] = known
  # Rows in pieces and columns in chunks, both powers of two that divide them.
  chunks = caches.bucket(-(-width // settings.prefill_tokens), per_octave=1)
  chunks = min(chunks, width & -width)
  rows_of_device = rows // _shards(settings.sharding)
  pieces = caches.bucket(
    -(-rows * width // (chunks * settings.prefill_tokens)), per_octave=1
  )
  pieces = min(pieces, rows_of_device & -rows_of_device)
  tokens, first = (a.reshape(pieces, -1, *a.shape[1:]) for a in (tokens, first))
  if settings.sharding is not None:
    mesh, spec = settings.sharding.mesh, settings.sharding.spec
    spec = jax.sharding.PartitionSpec(None, spec[0])
    tokens, first = jax.device_put(
      (tokens, first), jax.sharding.NamedSharding(mesh, spec)
    )
  return _prefill(
    policy, weights, tokens, first, chunks=chunks, sharding=settings.sharding
  )


@functools.partial(jax.jit, static_argnames=("policy", "chunks", "sharding"))
def _prefill(policy, weights, tokens, first, *, chunks, sharding):
  """The cache of [pieces, rows, columns] prompts; one piece at a time."""
  _compiled["prefill"] += 1
  width = tokens.shape[2]
  chunk = width // chunks

  def piece(inputs):
    tokens, first = inputs
    positions = jnp.maximum(jnp.arange(width)[None] - first[:, None], 0)

    def extend(i, cache):
      part = functools.partial(
        jax.lax.dynamic_slice_in_dim,
        start_index=i * chunk,
        slice_size=chunk,
        axis=1,
      )
      start = i * chunk
      _, cache = policy.extend(
        weights, cache, part(tokens), part(positions), start, first
      )
      return cache

    cache = caches.constrain(policy.init_cache(len(tokens), width), sharding)
    return jax.lax.fori_loop(0, chunks, extend, cache)

  cache = jax.lax.map(piece, (tokens, first))
  rows = tokens.shape[0] * tokens.shape[1]
  cache = jax.tree.map(lambda a: a.reshape(rows, *a.shape[2:]), cache)
  return caches.constrain(cache, sharding)


@functools.partial(
  jax.jit,
  static_argnames=("policy", "needs", "length", "sharding"),
  donate_argnames=("cache",),
)
def _decode(
  policy,
  weights,
  cache,
  rows,
  key,
  eos_ids,
  column,
  steps,
  *,
  needs,
  length,
  sharding,
):
  """Decodes until `steps` or until no row runs.

  Returns (cache, steps taken, tokens [B, length], log-probs [B, length],
  tokens kept [B], finish reason or -1 [B]).
  """
  _compiled["decode"] += 1
  keys = sampling.row_keys(key, rows.prompt_id, rows.sample)

  def step(loop):
    i, cache, token, finish, count, tokens, logprobs = loop
    at = column + i
    hidden, cache = policy.extend(
      weights,
      cache,
      token[:, None],
      (at - rows.first)[:, None],
      at,
      rows.first,
    )
    logits = policy.logits(weights, hidden[:, 0])
    token, logprob = sampling.draw(
      keys, at - rows.begin, logits, rows.rules, needs=needs
    )
    running, broken = finish == _RUNNING, ~jnp.isfinite(logprob)
    kept = running & ~broken
    token, logprob = jnp.where(kept, token, 0), jnp.where(kept, logprob, 0)
    stopped = (token[:, None] == eos_ids[None]).any(-1)
    spent = at + 1 >= rows.end
    reason = jnp.select(
      [~running, broken, stopped, spent],
      [finish, jnp.int8(ERROR), jnp.int8(STOP), jnp.int8(LENGTH)],
      jnp.int8(_RUNNING),
    )
    put = jax.lax.dynamic_update_slice_in_dim
    return (
      i + 1,
      caches.constrain(cache, sharding),
      token,
      reason,
      count + kept,
      put(tokens, token[:, None], i, 1),
      put(logprobs, logprob[:, None], i, 1),
    )

  size = len(rows.token)
  taken, cache, _, *out = jax.lax.while_loop(
    lambda loop: (loop[0] < steps) & (loop[3] == _RUNNING).any(),
    step,
    (
      jnp.int32(0),
      cache,
      rows.token,
      jnp.where(rows.running, jnp.int8(_RUNNING), jnp.int8(LENGTH)),
      jnp.zeros(size, jnp.int32),
      jnp.zeros((size, length), jnp.int32),
      jnp.zeros((size, length), jnp.float32),
    ),
  )
  finish, count, tokens, logprobs = out
  results = (taken, tokens, logprobs, count, finish)
  if sharding is not None:
    # Every process reads all of it, and so takes the same branch.
    everywhere = jax.sharding.NamedSharding(
      sharding.mesh, jax.sharding.PartitionSpec()
    )
    results = jax.lax.with_sharding_constraint(results, everywhere)
  return cache, *results
