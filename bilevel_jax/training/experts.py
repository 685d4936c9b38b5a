"""Another model that a method asks: a teacher, or what wrote demonstrations."""

import pathlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import config
from bilevel_jax.data import batches
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.methods import terms
from bilevel_jax.models import policy as policy_lib
from bilevel_jax.models import sources as model_sources
from bilevel_jax.rollout import assemble
from bilevel_jax.training import sharding, sources
from bilevel_jax.types import Policy, TokenBatch, Tree


class Expert(NamedTuple):
  """A model whose log-probs are asked for."""

  logprobs: Callable[[TokenBatch], jax.Array]
  """batch -> [B, T] float32."""


def enlist(
  settings: config.Config,
  wanted: Literal["rollouts", "demonstrations"] | None,
  model: sources.Model,
  streams: sources.Streams,
  mesh: jax.sharding.Mesh,
  base: Tree,
) -> Expert | None:
  """Returns the model that scores rollouts, if they are to be scored.

  Demonstrations are scored here, once, unless their log-probs came with them;
  the stream keeps them, and the model is let go.

  Args:
    settings: `method.expert` says which model.
    wanted: what is to be scored.
    model: the run's own.
    streams: the run's examples.
    mesh: of the devices.
    base: weights that the run begins with, not consumed.

  Raises:
    ConfigError: weights that cannot be read, or of another vocabulary.
  """
  if wanted == "rollouts":
    return Expert(
      _scorer(settings, model, mesh, base, settings.rollout.temperature)
    )
  stream = streams.demonstrations
  if wanted == "demonstrations" and stream and stream.logprobs is None:
    # As the SFT loss scores them: at a temperature of 1.
    stream.logprobs = score(
      _scorer(settings, model, mesh, base, 1.0, whole=True),
      stream,
      rows=settings.training.micro_batch_sequences
      or settings.data.demonstrations_per_step,
      sharding=sharding.batch_sharding(mesh),
    )
  return None


def score(
  logprobs: Callable[[TokenBatch], jax.Array],
  demonstrations: batches.Demonstrations,
  *,
  rows: int,
  sharding: jax.sharding.NamedSharding,
) -> list[np.ndarray]:
  """Returns the log-probs of every solution's tokens, in order of `pairs`.

  Args:
    logprobs: batch -> [B, T].
    demonstrations: what is scored.
    rows: of a batch, rounded up to what the sharding can split.
    sharding: of an array of rows.
  """
  multiple = sharding.mesh.shape["data"] * sharding.mesh.shape["fsdp"]
  rows = -(-rows // multiple) * multiple
  pairs = demonstrations.pairs
  found: list[np.ndarray] = [np.empty(0)] * len(pairs)
  # By length, so that few columns are padding.
  order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
  for start in range(0, len(order), rows):
    chosen = order[start : start + rows]
    batch = assemble.token_batch(
      [pairs[i] for i in chosen], lambda mask: mask, rows=rows
    )
    values = np.asarray(logprobs(jax.device_put(batch, sharding)))
    for row, i in zip(values, chosen, strict=False):
      prompt, solution = pairs[i]
      found[i] = row[len(prompt) : len(prompt) + len(solution)]
  return found


def _scorer(
  settings: config.Config,
  model: sources.Model,
  mesh: jax.sharding.Mesh,
  base: Tree,
  temperature: float,
  *,
  whole: bool = False,
) -> Callable[[TokenBatch], jax.Array]:
  """Returns batch -> [B, T]; `whole` on every device, else split as it is."""
  policy, tree = _load(settings, model, mesh, base)

  def logprobs(tree: Tree, batch: TokenBatch) -> jax.Array:
    return terms.token_logprobs(
      policy,
      tree,
      None,
      batch,
      temperature=temperature,
      chunk=settings.model.logprob_chunk,
    )[0]

  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  program = jax.jit(logprobs, out_shardings=everywhere if whole else None)
  return lambda batch: program(tree, batch)


def _load(
  settings: config.Config,
  model: sources.Model,
  mesh: jax.sharding.Mesh,
  base: Tree,
) -> tuple[Policy, Tree]:
  """Returns the policy and its weights, in the compute dtype."""
  wanted, dtype = settings.method.expert, settings.model.compute_dtype
  cast = lambda x: jnp.copy(x).astype(dtype)
  if wanted.weights is None:
    return model.policy, jax.tree.map(cast, base)
  scratch = pathlib.Path(settings.run_dir) / "expert"
  found = model_sources.load(wanted.weights, scratch, revision=wanted.revision)
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
  placed = sharding.shardings(jax.eval_shape(lambda: found.base), mesh)
  return policy, jax.tree.map(cast, jax.device_put(found.base, placed))


def _check_vocabulary(
  settings: config.Config,
  ours: tokenizer_lib.Tokenizer,
  files: pathlib.Path,
) -> None:
  wording = settings.tokenizer
  theirs = tokenizer_lib.load(
    files,
    chat_template=wording.chat_template,
    system_prompt=wording.system_prompt,
    prompt=wording.prompt,
    use_chat_template=wording.use_chat_template,
  ).vocabulary()
  for token, number in ours.vocabulary().items():
    if theirs.get(token) != number:
      raise config.ConfigError(
        f"method.expert.weights {settings.method.expert.weights} must have the "
        f"vocabulary of the model: {token!r} is token {number} of ours, and "
        f"{theirs.get(token, 'none')} of theirs"
      )
