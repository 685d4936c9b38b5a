"""Another model that a method asks: a teacher, or what wrote demonstrations."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import config, loading, processes
from bilevel_jax.data import batches
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.models import policy as policy_lib
from bilevel_jax.models import sources as model_sources
from bilevel_jax.rollout import assemble, packing
from bilevel_jax.training import learner as learner_lib
from bilevel_jax.training import programs, sharding, sources
from bilevel_jax.types import Policy, TokenBatch, Tree


class Expert(NamedTuple):
  """A model whose log-probs are asked for."""

  logprobs: Callable[[TokenBatch], jax.Array]
  """batch -> [B, T] float32."""


def enlist(
  settings: config.Config,
  model: sources.Model,
  streams: sources.Streams,
  learner: learner_lib.Learner,
  mesh: jax.sharding.Mesh,
  base: Tree,
) -> Expert | None:
  """Returns the model that is to score rollouts, if the method wants them to.

  Where it wants demonstrations scored, that is done here, once, unless their
  log-probs came with them; the stream keeps them and the model is let go.

  Args:
    settings: `method.expert` says which model.
    model: the run's own.
    streams: the run's examples.
    learner: with the method.
    mesh: of the devices.
    base: weights that the run begins with, not consumed.

  Raises:
    ConfigError: weights that cannot be read, or of another vocabulary.
  """
  wanted, stream = learner.method.expert, streams.demonstrations
  if wanted == "rollouts":
    return _load(settings, model, mesh, base, settings.rollout.temperature)
  if wanted == "demonstrations" and stream and stream.logprobs is None:
    # At a temperature of 1, as the SFT loss scores them.
    expert = _load(settings, model, mesh, base, 1.0)
    stream.logprobs = score(
      expert,
      stream,
      rows=settings.data.demonstrations_per_step,
      how=learner.packing,
      mesh=mesh,
    )
  return None


def score(
  expert: Expert,
  demonstrations: batches.Demonstrations,
  *,
  rows: int,
  how: packing.Packing,
  mesh: jax.sharding.Mesh,
) -> list[np.ndarray]:
  """Returns the log-probs of every solution's tokens, in order of `pairs`.

  Args:
    expert: what wrote them, or is taken to have.
    demonstrations: what is scored.
    rows: of a batch.
    how: its rows are filled.
    mesh: of the devices.
  """
  pairs = demonstrations.pairs
  found: list[np.ndarray] = [np.empty(0)] * len(pairs)
  # By length, so that few columns are padding.
  order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
  for start in range(0, len(order), rows):
    chosen = order[start : start + rows]
    batch = assemble.token_batch(
      [pairs[i] for i in chosen], lambda mask: mask, rows=rows
    )
    batch = sharding.place_batch(packing.pack(batch, how), mesh)
    values = np.asarray(expert.logprobs(batch))
    for row, i in enumerate(chosen):
      prompt, solution = pairs[i]
      found[i] = values[row, len(prompt) : len(prompt) + len(solution)]
  return found


def _load(
  settings: config.Config,
  model: sources.Model,
  mesh: jax.sharding.Mesh,
  base: Tree,
  temperature: float,
) -> Expert:
  """Returns the model of `method.expert`, in the compute dtype."""
  wanted, dtype = settings.method.expert, settings.model.compute_dtype
  policy: Policy = model.policy
  if wanted.weights is not None:
    scratch = pathlib.Path(settings.run_dir) / "expert"
    found = model_sources.load(
      wanted.weights, scratch, revision=wanted.revision
    )
    _check_vocabulary(settings, model.tokenizer, found.files)
    sources.check_positions(settings, found.architecture)
    policy = policy_lib.make(
      found.architecture,
      adapter_rank=1,
      adapter_alpha=1.0,
      adapter_targets=("q",),
      compute_dtype=dtype,
      attention=settings.model.attention,
      remat="none",
    )
    abstract = jax.eval_shape(lambda: found.base)
    base = processes.put(found.base, sharding.shardings(abstract, mesh))
  tree = jax.tree.map(lambda x: jnp.copy(x).astype(dtype), base)
  program = jax.jit(
    programs.scoring(
      policy, temperature=temperature, chunk=settings.model.logprob_chunk
    ),
    # Rows of sequences are whole on every device, as in a batch.
    out_shardings=jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec()
    ),
  )
  return Expert(lambda batch: program(tree, None, batch))


def _check_vocabulary(
  settings: config.Config,
  ours: tokenizer_lib.Tokenizer,
  files: pathlib.Path,
) -> None:
  theirs = loading.tokenizer(files, settings.tokenizer).vocabulary()
  for token, number in ours.vocabulary().items():
    if theirs.get(token) != number:
      raise config.ConfigError(
        f"method.expert.weights {settings.method.expert.weights} must have the "
        f"vocabulary of the model: {token!r} is token {number} of ours, and "
        f"{theirs.get(token, 'none')} of theirs"
      )
