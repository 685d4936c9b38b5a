"""What the parts of a run share, gathered and checked before the first."""

import dataclasses
import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from bilevel_jax import config, errors, fields, methods, own_code, processes
from bilevel_jax.data import rows
from bilevel_jax.rewards import pool, verifiers
from bilevel_jax.rollout import cache
from bilevel_jax.training import (
  checkpoint,
  experts,
  frozen_base,
  meshes,
  sharding,
  sources,
  teaching,
)
from bilevel_jax.training import learner as learner_lib
from bilevel_jax.types import Policy, TrainState, Tree


@dataclasses.dataclass(kw_only=True)
class Run:
  """What the parts of a run share. Only `state` and `host` ever change."""

  settings: config.Config
  model: sources.Model
  streams: sources.Streams
  learner: learner_lib.Learner
  scorer: pool.Scorer
  mesh: jax.sharding.Mesh
  device_summary: str  # of the devices, and why: for the opening lines
  cache_bytes: int  # that the sampler's KV cache may take on a device
  frozen: Tree | None  # base of LoRA factors that are trained in its place
  reference: Tree | None  # base of the KL's reference policy
  expert: experts.Expert | None  # that scores rollouts
  state: TrainState
  host: dict[str, Any]  # JSON: where the streams stand

  @property
  def rows(self) -> jax.sharding.NamedSharding:
    """Where the sampler's arrays lie."""
    return sharding.batch_sharding(self.mesh)

  def reference_tree(self) -> Tree | None:
    """Returns the base of the KL's reference policy now; None: no KL term."""
    if self.learner.method.needs.reference == "own":
      return self.state.extra["reference"]
    return self.reference

  def weights(self) -> Tree:
    """Returns what the sampler reads: the policy as it is now, merged."""
    return self.learner.programs.merge(
      self.state.base, self.state.adapter, self.frozen
    )


def build_scorer(settings: config.Config) -> pool.Scorer:
  """Returns what scores completions, its processes started.

  Raises:
    ConfigError: a verifier, or a sandbox, that cannot be had.
  """
  reward = settings.reward
  ones = (1.0,) * len(reward.verifiers)
  with processes.together():
    return pool.Scorer(
      dict(zip(reward.verifiers, reward.weights or ones, strict=True)),
      pattern=reward.pattern,
      by=verifiers.choice(reward.verifiers_by, reward.verifier_names),
      sandbox=settings.sandbox,
      deadline_s=reward.deadline_s,
      memory=fields.byte_count(reward.memory) if reward.memory else None,
      workers=reward.workers,
    )


def gather(settings: config.Config, scorer: pool.Scorer) -> Run:
  """Returns the run before its first step; every check is made here.

  Raises:
    ConfigError: something in the settings cannot be used.
  """
  with processes.together():
    found = sources.open_model(settings)
    sources.check_positions(settings, found.architecture)
  mesh, device_summary = meshes.make(settings, found.architecture)
  with processes.together():
    model = sources.build_model(settings, found, sharding.batch_sharding(mesh))
    streams = sources.build_streams(settings, model.tokenizer)
    for prompts in filter(None, (streams.prompts, streams.held_out)):
      scorer.check(prompts.questions)
    processes.check_mesh(mesh)
    learner = learner_lib.build(
      settings,
      model.policy,
      mesh,
      sources.demonstration_groups(settings, streams),
    )
    needs = learner.method.needs
    without = streams.demonstrations is None
    if without and (
      needs.own_demonstrations or needs.demonstrations == "required"
    ):
      raise errors.ConfigError(
        f"method {settings.method.name} needs demonstrations: "
        "data.demonstrations_per_step must be at least 1, got 0"
      )
    if needs.own_demonstrations and not streams.pairs:
      raise errors.ConfigError(
        f"method {settings.method.name} needs demonstrations of its questions: "
        "at least one must have the text of a question, got none that has"
      )
    if needs.teacher is not None:
      teaching.check_prompt(model.tokenizer, needs.teacher, streams)
    if (
      needs.demonstrations == "prefix" and settings.data.demonstrations.weights
    ):
      raise errors.ConfigError(
        "data.demonstrations.weights must be None with the method "
        f"{settings.method.name}, which begins samples with demonstrations and "
        f"has no SFT loss, got {settings.data.demonstrations.weights!r}"
      )
    if needs.gradients is None and settings.training.max_update_flops:
      raise errors.ConfigError(
        "training.max_update_flops needs a method whose operations are counted "
        f"(of bridge: hypergradient=penalty), got {settings.method.name}"
      )
    frozen, base = frozen_base.start_weights(settings, model, mesh)
  examples = streams.checksum()
  processes.check_same("the examples", examples.encode())
  reference = None
  dtype = learner_lib.reference_dtype(settings)
  if dtype and needs.reference == "start" and needs.rollouts:
    reference = jax.tree.map(lambda x: jnp.copy(x).astype(dtype), base)
  expert = experts.load_expert(
    settings, model, streams, learner, mesh, base, frozen
  )
  state = learner_lib.initial_state(settings, learner, model.policy, base)
  return Run(
    settings=settings,
    model=model,
    streams=streams,
    learner=learner,
    scorer=scorer,
    mesh=mesh,
    device_summary=device_summary,
    frozen=frozen,
    reference=reference,
    expert=expert,
    cache_bytes=settings.rollout.kv_cache_bytes
    or cache.default_bytes(list(mesh.devices.flat)),
    state=state,
    host={
      "questions": 0,
      "demonstrations": 0,
      "tokens": 0,
      "update_flops": 0.0,
      "method": {},  # the method's own memory
      "model": frozen_base.checksum(base if frozen is None else (frozen, base))
      | {"parameters": _parameters(model.policy)},
      "examples": examples,
      "code": _code(settings),
    },
  )


def _parameters(policy: Policy) -> int:
  shapes = jax.eval_shape(policy.init_frozen or policy.init, jax.random.key(0))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def changed_code(run: Run) -> list[str]:
  """Returns a sentence for each file of the user's own code that changed."""
  return [
    f"the code of {path} is not what the run started with"
    for path, code in _code(run.settings).items()
    if run.host["code"].get(path) != code
  ]


def _code(settings: config.Config) -> dict[str, str]:
  paths = [p for p in settings.reward.verifiers if p not in verifiers.NAMES]
  if settings.method.name not in methods.METHODS:
    paths.append(settings.method.name)
  return {path: own_code.file_hash(path) for path in paths}


def spent(run: Run) -> str | None:
  """Returns the setting whose budget the run has used up, with its value."""
  budgets = {"max_sampled_tokens": "tokens", "max_update_flops": "update_flops"}
  for setting, counted in budgets.items():
    most = getattr(run.settings.training, setting)
    if most is not None and run.host[counted] >= most:
      return f"training.{setting} {most:g}"
  return None


def resume(run: Run, checkpoints: checkpoint.Checkpoints) -> int:
  """Takes the latest complete checkpoint up; returns the steps it had done.

  Raises:
    ConfigError: it is of other weights or examples.
  """
  restored = checkpoints.restore(run.state)
  if restored is None:
    return 0  # the run was killed before its first checkpoint
  done, state, host = restored
  if host["model"] != run.host["model"]:
    raise errors.ConfigError(
      f"cannot resume: {run.settings.model.weights} has other weights than "
      "the run in run_dir started from"
    )
  # A checkpoint of an older version does not have it.
  if host.setdefault("examples", run.host["examples"]) != run.host["examples"]:
    raise errors.ConfigError(
      f"cannot resume {run.settings.run_dir}: the examples are others than it "
      "started with (their rows, or how the tokenizer and its template render "
      "them)"
    )
  host.setdefault("code", run.host["code"])
  run.state, run.host = state, host
  return done


def over(run: Run, done: int) -> str | None:
  """Returns why there is no step left to do after so many, if so."""
  if done >= run.settings.steps:
    return f"the run has done {done} steps of steps {run.settings.steps}"
  if budget := spent(run):
    return (
      f"the run has sampled {run.host['tokens']} tokens, its updates took "
      f"{run.host['update_flops']:g} operations, and its budget is {budget}"
    )
  return None


def due(every: int | None, done: int, steps: int) -> bool:
  """Returns whether what happens every so often happens after this step.

  Args:
    every: steps between; None: at the end alone.
  """
  return done == steps or (every is not None and done % every == 0)


def _trained(run: Run) -> str:
  if run.frozen is None:
    return ""
  count = sum(
    x.size for x in jax.tree.leaves((run.state.base, run.state.adapter))
  )
  kept = run.settings.model.base_dtype
  return f", frozen in {kept}; {count / 1e6:.2f}M of LoRA factors are trained"


def opening(run: Run) -> str:
  """Returns what the run is about to do, in a few lines."""
  settings, streams = run.settings, run.streams
  name = settings.model.weights or settings.model.preset
  lines = [
    f"{settings.method.name} on {name}"
    f", {run.host['model']['parameters'] / 1e6:.2f}M parameters{_trained(run)}",
    f"{run.device_summary}, computing in {settings.model.dtype}",
    f"questions: {streams.prompts.counts}",
  ]
  if streams.demonstrations is not None:
    lines.append(f"demonstrations: {streams.demonstrations.counts}")
    bare, solved = rows.bare_solutions(streams.demonstrations.questions)
    if bare:
      lines.append(
        f"{bare} of {solved} solutions are bare answers, and learned as they "
        "are: where a reward is to read them, fields.answer names their column"
      )
    if path := settings.data.demonstrations.weights:
      weights = [d.weight for d in streams.demonstrations.examples]
      lines.append(
        f"their weights, from {path}: {min(weights):.2f} to "
        f"{max(weights):.2f}, mean {statistics.mean(weights):.2f}"
      )
    lines.append(
      f"{streams.pairs} of {len(streams.prompts)} questions have a "
      "demonstration of their own"
    )
    if (share := settings.data.paired_questions_share) is not None:
      lines[-1] += f", from which {share:.0%} of those asked come"
  if run.scorer.isolation is not None:
    lines.append(f"programs run in: {run.scorer.isolation}")
  if streams.held_out is not None:
    lines.append(f"held out: {streams.held_out.counts}")
  first = streams.prompts.questions[0]
  if first.dialogue is not None and not first.dialogue.turns:
    lines.append("prompts are texts, continued as they stand")
  shown = run.model.tokenizer.prompt_text(first)
  lines.append(f"the first prompt, as the model gets it: {shown!r}")
  return "\n".join(lines)
