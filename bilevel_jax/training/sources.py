"""What a run reads and writes: the model, its examples, its weights."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from bilevel_jax import config, errors, methods, types, weights
from bilevel_jax.data import (
  batches,
  corpora,
  demonstration_weights,
  pass_rates,
)
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.methods import contract
from bilevel_jax.models import policy as policy_lib
from bilevel_jax.models import presets
from bilevel_jax.random_streams import Stream
from bilevel_jax.rewards import verifiers
from bilevel_jax.rollout import engine
from bilevel_jax.training import sharding
from bilevel_jax.types import Policy, TrainState, Tree
from bilevel_jax.weights import huggingface, peft_files

_MOST_GROUPS = 16


class Model(NamedTuple):
  """A policy with its tokenizer, and what its weights are read from."""

  policy: Policy
  architecture: presets.Architecture
  tokenizer: tokenizer_lib.Tokenizer
  opened: weights.Opened


class Streams(NamedTuple):
  """The examples of a run. The two training streams may share questions."""

  prompts: batches.Prompts
  demonstrations: batches.Demonstrations | None
  held_out: batches.Prompts | None
  pairs: int  # questions that have a demonstration of their own

  def checksum(self) -> str:
    """Returns a hash of every example: tokens, answers, what a reward sees."""
    content = hashlib.sha256()

    def add(*parts: bytes) -> None:
      for part in parts:
        content.update(len(part).to_bytes(8, "little") + part)

    for prompts in filter(None, (self.prompts, self.held_out)):
      if prompts.ranks is not None:
        add(prompts.ranks.tobytes())
      for question, prompt in zip(*prompts.every(), strict=True):
        add(prompt.tobytes(), repr(question).encode("utf-8", "surrogatepass"))
    if self.demonstrations is not None:
      for example in self.demonstrations.examples:
        add(example.prompt.tobytes(), example.solution.tobytes())
        if example.weight != 1:
          add(repr(example.weight).encode())
        if example.token_weights is not None:
          add(example.token_weights.tobytes())
    return content.hexdigest()


def open_model(settings: config.Config) -> weights.Opened:
  """Returns the settings' model; reads no weights.

  Raises:
    ConfigError: it is unknown, or not there.
  """
  model = settings.model
  if model.weights is not None:
    return weights.open(model.weights, revision=model.revision)
  return weights.untrained(
    presets.get(str(model.preset)),
    lambda: Stream.WEIGHTS.key(settings.seed),
  )


def build_policy(
  settings: config.Config,
  architecture: presets.Architecture,
  rows: jax.sharding.NamedSharding | None = None,
  without_token: frozenset[int] = frozenset(),
) -> Policy:
  """Returns the policy of an architecture, as the settings want it computed.

  Args:
    rows: of training batches, over the devices of a run; None: one device.
    without_token: ids that the tokenizer has no token for.

  Raises:
    ConfigError: adapter targets or a kernel that it cannot have.
  """
  return policy_lib.make(
    architecture,
    compute_dtype=settings.model.dtype,
    attention=settings.model.attention,
    remat=settings.model.remat,
    adapter=settings.adapter.upper(settings.model.train),
    trained=settings.adapter.trained(settings.model.train),
    base_dtype=settings.model.base_dtype,
    rows=rows,
    without_token=without_token,
  )


def build_model(
  settings: config.Config,
  opened: weights.Opened,
  rows: jax.sharding.NamedSharding | None = None,
) -> Model:
  """Returns the model of the settings; reads no weights yet.

  Raises:
    ConfigError: an unknown architecture, or a tokenizer that does not fit.
  """
  architecture = opened.architecture
  files = settings.tokenizer.path or opened.tokenizer_files(
    pathlib.Path(settings.run_dir) / "tokenizer"
  )
  tokenizer = tokenizer_lib.of_settings(files, settings.tokenizer)
  without_token = tokenizer.ids_without_token(architecture.vocab_size)
  policy = build_policy(settings, architecture, rows, without_token)
  if (kv_cache_bytes := settings.rollout.kv_cache_bytes) is not None:
    engine.rows_that_fit(
      policy,
      settings.data.max_prompt_tokens,
      _longest_completion(settings),
      kv_cache_bytes,
    )
  return Model(policy, architecture, tokenizer, opened)


def check_positions(
  settings: config.Config, architecture: presets.Architecture
) -> None:
  """Returns if the model has a position for every token of a sequence.

  Raises:
    ConfigError: it has not.
  """
  longest = max(
    settings.data.max_prompt_tokens + _longest_completion(settings),
    settings.data.max_demonstration_tokens,
  )
  if longest > architecture.max_positions:
    raise errors.ConfigError(
      f"the longest sequence has {longest} tokens (data.max_prompt_tokens + "
      "rollout.max_new_tokens or evaluation.max_new_tokens, or "
      "data.max_demonstration_tokens), but the model has "
      f"{architecture.max_positions} positions"
    )


def _longest_completion(settings: config.Config) -> int:
  return max(
    settings.rollout.max_new_tokens, settings.evaluation.max_new_tokens or 0
  )


def build_streams(
  settings: config.Config, tokenizer: batches.Encoder
) -> Streams:
  """Returns the encoded examples.

  Raises:
    ConfigError: a source that cannot be read, nothing that fits, or weights of
      other demonstrations.
  """
  data = settings.data
  reading = [
    verifier
    for verifier in settings.reward.verifiers
    if verifier in verifiers.READ_ANSWERS
    and settings.reward.verifiers_by is None  # else the scorer checks each row
  ]
  rollouts = methods.find(settings.method.name).rollouts
  parts = corpora.load_parts(data.questions, reading if rollouts else ())
  is_set = lambda source: bool(
    source.path or source.hub or source.task or source.sources
  )

  def prompts(examples, seed):
    return batches.Prompts(
      examples,
      tokenizer,
      max_tokens=data.max_prompt_tokens,
      overlong=data.overlong,
      seed=seed,
    )

  demonstrations = None
  if data.demonstrations_per_step:
    own = parts
    if is_set(data.demonstrations):
      own = corpora.load_parts(data.demonstrations)
    examples = [question for part in own for question in part.questions]
    if data.solution is not None:
      examples = corpora.rewritten(examples, data.solution)
    demonstrations = batches.Demonstrations(
      examples,
      tokenizer,
      max_tokens=data.max_demonstration_tokens,
      overlong=data.overlong,
      share=data.demonstration_share,
      seed=settings.seed + 1,
    )
    if len(own) > 1:
      # Those of one dialogue's turns have names of their own.
      of = lambda question: question._replace(id=question.id.split("-turn-")[0])
      demonstrations.set_shares(
        *_shares(own, [of(q) for q in demonstrations.questions])
      )
    if (path := data.demonstrations.weights) is not None:
      demonstrations.set_weights(
        demonstration_weights.of(demonstrations.questions, path)
      )
  held_out = None
  if is_set(data.evaluation):
    held_out = prompts(corpora.load(data.evaluation, reading), settings.seed)
  questions = [question for part in parts for question in part.questions]
  asked = prompts(_kept(questions, data), settings.seed)
  if data.pass_rates is not None and data.curriculum != "none":
    rates = np.array(pass_rates.of_file(asked.questions, data.pass_rates))
    asked.set_ranks(-rates if data.curriculum == "easy_first" else rates)
  if len(parts) > 1:
    asked.set_shares(*_shares(parts, asked.questions))
  paired = [False] * len(asked)
  if demonstrations is not None:
    paired = [own is not None for own in demonstrations.of(asked.questions)]
  _set_share(asked, paired, data.paired_questions_share)
  return Streams(asked, demonstrations, held_out, sum(paired))


def _shares(
  parts: Sequence[corpora.Part], questions: Sequence[types.Question]
) -> tuple[list[int], list[float]]:
  """Returns the part of each question, and the share of each part."""
  part_of = {
    question.id: number
    for number, part in enumerate(parts)
    for question in part.questions
  }
  members = [part_of[question.id] for question in questions]
  return members, [part.share for part in parts]


def _kept(
  questions: list[types.Question], data: config.Data
) -> list[types.Question]:
  """Returns the questions whose pass rate is within the bounds."""
  if data.pass_rates is None or data.keep is None:
    return questions
  least, most = pass_rates.bounds(data.keep)
  rates = pass_rates.of_file(questions, data.pass_rates)
  found = [
    question
    for question, rate in zip(questions, rates, strict=True)
    if least <= rate <= most
  ]
  if not found:
    raise errors.ConfigError(
      f"data.keep {data.keep} must leave a question, but the {len(rates)} pass "
      f"rates are {min(rates):g} to {max(rates):g}"
    )
  return found


def _set_share(
  asked: batches.Prompts, paired: Sequence[bool], share: float | None
) -> None:
  """Makes `share` of the questions those with a demonstration of their own."""
  if share is None:
    return
  for needed, found, what in (
    (share > 0, any(paired), "a question with"),
    (share < 1, not all(paired), "a question without"),
  ):
    if needed and not found:
      raise errors.ConfigError(
        f"data.paired_questions_share {share:g} needs {what} a demonstration "
        f"of its own, got {sum(paired)} of {len(paired)} questions with one"
      )
  asked.set_shares([0 if own else 1 for own in paired], [share, 1 - share])


def demonstration_groups(
  settings: config.Config, streams: Streams
) -> contract.DemonstrationGroups:
  """Returns the groups that `data.demonstration_group` makes.

  Raises:
    ConfigError: a demonstration without that field, or too many groups.
  """
  field = settings.data.demonstration_group
  if streams.demonstrations is None:
    return contract.DemonstrationGroups()
  questions = streams.demonstrations.questions
  if field is None:
    return contract.DemonstrationGroups(
      members=np.zeros(len(questions), np.int32)
    )
  values = []
  for question in questions:
    if (value := question.meta.get(field)) is None:
      raise errors.ConfigError(
        f"data.demonstration_group must name a field of every demonstration, "
        f"got {field!r}, which the demonstration {question.id} does not have"
      )
    values.append(str(value))
  names, members = np.unique(values, return_inverse=True)
  if len(names) > _MOST_GROUPS:
    raise errors.ConfigError(
      f"data.demonstration_group must make at most {_MOST_GROUPS} groups, got "
      f"{len(names)} of {field!r}"
    )
  return contract.DemonstrationGroups(
    tuple(map(str, names)), members.astype(np.int32)
  )


def read_base(model: Model, mesh: jax.sharding.Mesh) -> Tree:
  """Returns the base to start from, in float32, sharded over the mesh.

  Raises:
    ConfigError: weights that cannot be read or do not fit.
  """
  init = model.policy.init_frozen or model.policy.init
  shapes = jax.eval_shape(init, jax.random.key(0))
  return model.opened.read(sharding.shardings(shapes, mesh))


def export(
  directory: pathlib.Path,
  settings: config.Config,
  model: Model,
  state: TrainState,
  frozen: Tree | None = None,
) -> None:
  """Writes the policy for transformers, for PEFT, or for both.

  Whole weights are the merged policy. The adapter, in a folder of its own, is
  both levels' factors where the base is frozen, and names the base that the run
  began with. Where the base was trained, too, or is of a kind that PEFT cannot
  load, the base that the adapter fits is written beside it.
  """
  base, adapter, name = state.base, state.adapter, None
  if frozen is not None:
    name = model.opened.name
    base, adapter = frozen, {**state.base, **(state.adapter or {})}
  spec = dataclasses.replace(
    settings.adapter.spec, targets=tuple(adapter or ())
  )
  write = functools.partial(
    huggingface.export,
    architecture=model.architecture,
    scale=spec.scale,
    source_directory=model.tokenizer.files,
  )
  if frozen is None or settings.checkpoints.export_merged:
    write(directory, base=base, adapter=adapter)
  if adapter is None:
    return
  fits = peft_files.Base(
    name, model.opened.fingerprint(), settings.model.revision
  )
  if name is None:
    path = (directory / "base").absolute()
    write(path, base=base)
    fits = peft_files.Base(str(path), weights.open(str(path)).fingerprint())
  huggingface.export_adapter(
    directory / peft_files.FOLDER, model.architecture, adapter, spec, base=fits
  )
