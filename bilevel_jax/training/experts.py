"""Another model that a method asks: a teacher, or what wrote demonstrations."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import config, errors, weights
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.models import policy as policy_lib
from bilevel_jax.rollout import assemble, packing
from bilevel_jax.training import learner as learner_lib
from bilevel_jax.training import programs, sharding, sources
from bilevel_jax.types import Demonstration, TokenBatch, Tree

Expert: TypeAlias = Callable[[TokenBatch], jax.Array]
"""A model whose log-probs are asked for: batch -> [B, T] float32."""


def load_expert(
  settings: config.Config,
  model: sources.Model,
  streams: sources.Streams,
  learner: learner_lib.Learner,
  mesh: jax.sharding.Mesh,
  base: Tree,
  frozen: Tree | None = None,
) -> Expert | None:
  """Returns the model that is to score rollouts, if the method wants them to.

  Where it wants demonstrations scored, that is done here, once, unless their
  log-probs came with them; the stream keeps them and the model is let go.

  Args:
    base: what is trained, as the run begins with it, not consumed.
    frozen: what it is over, where it is LoRA factors.

  Raises:
    ConfigError: weights that cannot be read, or of another vocabulary; or
      dialogues of several turns, of which it would score one.
  """
  wanted, stream = learner.method.needs.expert, streams.demonstrations
  load = functools.partial(_load, settings, model, mesh, base, frozen)
  if wanted == "rollouts":
    return load(settings.rollout.temperature)
  scored = stream is None or all(
    d.logprobs is not None for d in stream.examples
  )
  if wanted == "demonstrations" and stream is not None:
    turned = [d.id for d in stream.examples if d.token_weights is not None]
    if turned:
      raise errors.ConfigError(
        f"method {settings.method.name} scores one turn of a demonstration, "
        f"got {len(turned)} with a loss on several: give their turns weight 0 "
        "but for the last"
      )
  if wanted == "demonstrations" and stream is not None and not scored:
    # At a temperature of 1, as the SFT loss scores them.
    expert = load(1.0)
    stream.set_logprobs(
      score(
        expert,
        stream.examples,
        rows=settings.data.demonstrations_per_step,
        how=learner.packing,
        mesh=mesh,
      )
    )
  return None


def score(
  expert: Expert,
  demonstrations: Sequence[Demonstration],
  *,
  rows: int,
  how: packing.Packing,
  mesh: jax.sharding.Mesh,
) -> list[np.ndarray]:
  """Returns the log-probs of every solution's tokens.

  Args:
    expert: what wrote them, or is taken to have.
  """
  found: list[np.ndarray] = [np.empty(0)] * len(demonstrations)
  length = lambda d: len(d.prompt) + len(d.solution)
  # By length, so that few columns are padding.
  order = sorted(
    range(len(demonstrations)), key=lambda i: length(demonstrations[i])
  )
  for start in range(0, len(order), rows):
    chosen = order[start : start + rows]
    batch = assemble.demonstration_batch(
      [demonstrations[i] for i in chosen], lambda mask: mask, rows=rows
    )
    batch = sharding.place_batch(packing.pack(batch, how), mesh)
    values = np.asarray(expert(batch))
    for row, i in enumerate(chosen):
      first = len(demonstrations[i].prompt)
      found[i] = values[row, first : length(demonstrations[i])]
  return found


def _load(
  settings: config.Config,
  model: sources.Model,
  mesh: jax.sharding.Mesh,
  base: Tree,
  frozen: Tree | None,
  temperature: float,
) -> Expert:
  """Returns the model of `method.expert`, in the compute dtype."""
  wanted, dtype = settings.method.expert, settings.model.dtype
  policy = model.policy  # where it is the start: its factors, if it has any
  if wanted.weights is not None:
    opened = weights.open(wanted.weights, revision=wanted.revision)
    scratch = pathlib.Path(settings.run_dir) / "expert"
    files = opened.tokenizer_files(scratch)
    theirs = tokenizer_lib.of_settings(files, settings.tokenizer)
    _check_vocabulary(settings, model.tokenizer, theirs)
    sources.check_positions(settings, opened.architecture)
    policy = policy_lib.make(
      opened.architecture,
      compute_dtype=dtype,
      attention=settings.model.attention,
      without_token=theirs.ids_without_token(opened.architecture.vocab_size),
    )
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    base, frozen = opened.read(sharding.shardings(shapes, mesh)), None
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
  return lambda batch: program(tree, None, batch, frozen)


def _check_vocabulary(
  settings: config.Config,
  ours: tokenizer_lib.Tokenizer,
  expert: tokenizer_lib.Tokenizer,
) -> None:
  theirs = expert.vocabulary()
  for token, number in ours.vocabulary().items():
    if theirs.get(token) != number:
      raise errors.ConfigError(
        f"method.expert.weights {settings.method.expert.weights} must have the "
        f"vocabulary of the model: {token!r} is token {number} of ours, and "
        f"{theirs.get(token, 'none')} of theirs"
      )
