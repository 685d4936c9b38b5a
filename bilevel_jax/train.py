"""One training run: sample, score, assemble, update, log, save, evaluate."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import config
from bilevel_jax.evaluation import benchmarks
from bilevel_jax.methods import contract
from bilevel_jax.rewards import pool
from bilevel_jax.rollout import answers, assemble, cache, routing
from bilevel_jax.training import (
  checkpoint,
  display,
  metrics,
  parts,
  profiler,
  report,
  run_directory,
  sharding,
  termination,
)
from bilevel_jax.types import Requests, Sampling, StepBatch, TrainState, Tree


class TrainingStopped(RuntimeError):
  """The run ended before its last step, for the reason in the message."""


@dataclasses.dataclass(kw_only=True)
class Run:
  """What the chapters of a run share. Only `state` and `host` ever change."""

  settings: config.Config
  model: parts.Model
  streams: parts.Streams
  learner: parts.Learner
  scorer: pool.Scorer
  rows: jax.sharding.NamedSharding  # of arrays with a row per sequence
  cache_bytes: int  # that the sampler's KV cache may take on a device
  reference: Tree | None  # base of the KL's reference policy
  state: TrainState
  host: dict[str, Any]  # JSON: where the streams stand


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """How a run ended."""

  steps: int
  before: benchmarks.Result | None
  after: benchmarks.Result | None


def run(settings: config.Config) -> Summary:
  """Trains as the settings say and returns the accuracies before and after.

  Raises:
    ConfigError: something in the settings cannot be used; nothing was done.
    TrainingStopped: terminated, no step left to do, or updates that stay
      non-finite.
  """
  directory = run_directory.prepare(settings.run_dir, settings, settings.resume)
  reward = settings.reward
  ones = (1.0,) * len(reward.verifiers)
  with pool.Scorer(
    dict(zip(reward.verifiers, reward.weights or ones, strict=True)),
    pattern=reward.pattern,
    deadline_s=reward.deadline_s,
    workers=reward.workers,
  ) as scorer:
    story = _gather(settings, scorer)
    checkpoints = checkpoint.Checkpoints(
      directory.checkpoints,
      keep_last=settings.checkpoints.keep_last,
      keep_best=settings.checkpoints.keep_best,
    )
    first = _resume(story, checkpoints) if settings.resume else 0
    directory.start(settings, first)
    with (
      checkpoints,
      metrics.Writers(directory, settings) as writers,
      display.Display(settings.steps, first, settings.logging) as screen,
      termination.Requested() as terminated,
      profiler.Profiler(
        settings.logging.profile_steps, directory.path / "profile"
      ) as profile,
    ):
      screen.note(_opening(story))
      before = after = None
      if first == 0:
        before = _evaluate(story, 0, screen)
        writers.step(0, before.metrics() if before else {})
      elif story.streams.held_out is not None:
        before = benchmarks.Result.from_metrics(directory.logged_at(0))
      for step in range(first, settings.steps):
        done = step + 1
        profile.before(done)
        logged = _step(story, step, writers, screen)
        profile.after(done)
        screen.step(done, logged)
        after = None
        if _due(settings.evaluation.every, done, settings.steps):
          after = _evaluate(story, done, screen)
        writers.step(done, logged | (after.metrics() if after else {}))
        _stop_if_non_finite(story, done)
        if terminated or _due(settings.checkpoints.every, done, settings.steps):
          accuracy = None if after is None else after.accuracy
          checkpoints.save(done, story.state, story.host, accuracy=accuracy)
        if terminated and done < settings.steps:
          raise TrainingStopped(
            f"terminated after step {done} of {settings.steps}, which is "
            "saved: continue with --config.resume=True"
          )
      checkpoints.wait()
      if settings.checkpoints.export:
        screen.note(f"exporting weights to {directory.export}")
        parts.export(directory.export, settings, story.model, story.state)
      report.write(directory.path)
      screen.closing(before, after, directory.path)
  return Summary(steps=settings.steps - first, before=before, after=after)


def _gather(settings: config.Config, scorer: pool.Scorer) -> Run:
  """Returns the run before its first step; every check is made here."""
  model = parts.build_model(settings)
  streams = parts.build_streams(settings, model.tokenizer)
  mesh = parts.make_mesh(settings.mesh)
  learner = parts.build_learner(settings, model.policy, mesh)
  plans = [learner.method.plan(step) for step in range(settings.steps)]
  routes = learner.method.route is not None and plans[0].demonstrations
  alone = any(not plan.rollouts for plan in plans)
  if (alone or routes) and streams.demonstrations is None:
    raise config.ConfigError(
      f"method {settings.method.name} learns from demonstrations alone"
      f"{' where it routes' * routes}: data.demonstrations_per_step must be at "
      "least 1, got 0"
    )
  base = parts.load_base(settings, model, mesh)
  reference = None
  dtype = parts.reference_dtype(settings)
  own = learner.method.reference is not None  # it is in the method's state
  if dtype and not own and any(plan.rollouts for plan in plans):
    reference = jax.tree.map(lambda x: jnp.copy(x).astype(dtype), base)
  state = parts.initial_state(settings, learner, model.policy, base)
  return Run(
    settings=settings,
    model=model,
    streams=streams,
    learner=learner,
    scorer=scorer,
    rows=sharding.batch_sharding(mesh),
    reference=reference,
    cache_bytes=settings.rollout.kv_cache_bytes
    or cache.default_bytes(list(mesh.devices.flat)),
    state=state,
    host={
      "questions": 0,
      "demonstrations": 0,
      "tokens": 0,
      "model": parts.fingerprint(base),
    },
  )


def _step(
  story: Run, step: int, writers: metrics.Writers, screen: display.Display
) -> dict[str, float]:
  """Samples, scores, assembles and updates; returns what to log."""
  started = time.perf_counter()
  settings, learner = story.settings, story.learner
  logged: dict[str, float] = {}
  answered = routed = None
  plan = learner.method.plan(step)
  if learner.method.narrow is not None:
    plan = learner.method.narrow(story.state, plan)
  if plan.rollouts:
    answered = _sample(story, step)
    logged |= answers.measure(answered)
    if learner.method.route is not None:
      routed = routing.follow(
        learner.method.route,
        answered,
        story.streams.demonstrations if plan.demonstrations else None,
        parts=settings.rl.updates_per_rollout,
        seed=(settings.seed, step),
      )
      logged |= routed.metrics()
    story.host["tokens"] += int(answered.rollout.lengths.sum())
    rows = answers.records(answered, settings.logging.completions_per_step)
    writers.completions(step + 1, rows)
    if _due(settings.logging.show_every, step + 1, settings.steps):
      screen.completions(step + 1, rows)
  update_started = time.perf_counter()
  updates = []
  for batch in _batches(story, step, plan, answered, routed):
    story.state, measured = learner.programs.update(story.state, batch)
    updates.append(measured)
  updates = jax.device_get(updates)
  logged["time/update_s"] = time.perf_counter() - update_started
  for name in updates[0]:
    logged[name] = float(np.mean([measured[name] for measured in updates]))
  logged["training/skipped_updates"] *= len(updates)
  if story.state.adapter is not None:
    logged["bilevel/adapter_delta_norm"] = float(
      learner.programs.delta_norm(story.state.base, story.state.adapter)
    )
  logged["rollout/tokens_so_far"] = story.host["tokens"]
  logged["time/step_s"] = time.perf_counter() - started
  return logged


def _sample(story: Run, step: int) -> answers.Answers:
  """Returns the policy's scored completions of the step's questions."""
  settings, rollout = story.settings, story.settings.rollout
  questions, prompts, ids = story.streams.prompts.take(
    story.host["questions"], settings.data.prompts_per_step
  )
  story.host["questions"] += len(questions)
  requests = Requests(
    prompts=prompts,
    prompt_ids=ids,
    samples_per_prompt=rollout.samples_per_prompt,
    max_new_tokens=rollout.max_new_tokens,
    eos_ids=story.model.tokenizer.eos_ids,
    stop=rollout.stop,
    total_tokens=rollout.total_tokens,
    sampling=Sampling(
      temperature=rollout.temperature,
      top_p=rollout.top_p,
      top_k=rollout.top_k,
      min_p=rollout.min_p,
    ),
    key=parts.key(settings, "rollout", step),
  )
  return answers.answer(
    story.model.policy,
    story.learner.programs.merge(story.state.base, story.state.adapter),
    questions,
    requests,
    story.model.tokenizer,
    story.scorer,
    max_rows=rollout.max_rows,
    cache_bytes=story.cache_bytes,
    sharding=story.rows,
  )


def _batches(
  story: Run,
  step: int,
  plan: contract.Plan,
  answered: answers.Answers | None,
  routed: routing.Routed | None,
) -> Iterator[StepBatch]:
  """Yields what each update of a step sees, on the devices."""
  settings, learner = story.settings, story.learner
  count = parts.updates_per_step(settings)
  multiple = story.rows.mesh.shape["data"] * story.rows.mesh.shape["fsdp"]
  rl_batches: list[Any] = [None] * count
  if answered is not None:
    rl_batches = assemble.minibatches(
      answered.rollout,
      routed.scores if routed else answered.scores,
      learner.rl_weighting,
      normalise=settings.rl.advantage,
      advantages=routed.advantages if routed else None,
      updates=settings.rl.updates_per_rollout,
      passes=settings.rl.passes_per_rollout,
      seed=(settings.seed, step),
      row_multiple=multiple,
    )
    old = count > 1 or plan.old_logprobs
    rl_batches = [_with_logprobs(story, batch, old) for batch in rl_batches]
  for number, rl in enumerate(rl_batches):
    sft = None
    if routed and plan.demonstrations:
      sft = routed.demonstrations(
        number, learner.sft_weighting, row_multiple=multiple
      )
    elif plan.demonstrations:
      sft = _demonstrations(story, count, multiple)
    yield StepBatch(rl=rl, sft=jax.device_put(sft, story.rows))


def _with_logprobs(story: Run, batch: Any, old_logprobs: bool) -> Any:
  """Returns an RL batch on the devices, with the log-probs that it needs.

  Called for every batch of a step before its first update, so that the old
  log-probs are those of the policy that sampled.
  """
  logprobs = story.learner.programs.logprobs
  batch = jax.device_put(batch, story.rows)
  if old_logprobs:
    old = logprobs(story.state.base, story.state.adapter, batch)
    batch = dataclasses.replace(batch, old_logprobs=old)
  reference, method = story.reference, story.learner.method
  if method.reference is not None:
    reference = method.reference(story.state)
  if reference is not None:
    ref = logprobs(reference, None, batch)
    batch = dataclasses.replace(batch, ref_logprobs=ref)
  return batch


def _demonstrations(story: Run, updates: int, multiple: int) -> Any:
  """Returns an update's share of the step's demonstrations."""
  wanted = story.settings.data.demonstrations_per_step // updates
  pairs = []
  if story.streams.demonstrations is not None:
    pairs = story.streams.demonstrations.take(
      story.host["demonstrations"], wanted
    )
  story.host["demonstrations"] += len(pairs)
  rows = -(-max(wanted, 1) // multiple) * multiple
  return assemble.token_batch(pairs, story.learner.sft_weighting, rows=rows)


def _evaluate(
  story: Run, step: int, screen: display.Display
) -> benchmarks.Result | None:
  """Returns and shows the accuracy on the held-out questions, if any."""
  settings = story.settings
  if story.streams.held_out is None:
    return None
  screen.note(f"evaluating on {len(story.streams.held_out)} questions")
  result = benchmarks.evaluate(
    story.model.policy,
    story.learner.programs.merge(story.state.base, story.state.adapter),
    story.streams.held_out,
    story.model.tokenizer,
    story.scorer,
    eos_ids=story.model.tokenizer.eos_ids,
    max_new_tokens=settings.evaluation.max_new_tokens
    or settings.rollout.max_new_tokens,
    temperature=settings.evaluation.temperature,
    max_rows=settings.rollout.max_rows,
    stop=settings.rollout.stop,
    cache_bytes=story.cache_bytes,
    key=parts.key(settings, "evaluation", step),
    sharding=story.rows,
  )
  screen.evaluation(step, result)
  return result


def _resume(story: Run, checkpoints: checkpoint.Checkpoints) -> int:
  """Takes the latest complete checkpoint up; returns the steps it had done."""
  restored = checkpoints.restore(story.state)
  if restored is None:
    return 0  # the run was killed before its first checkpoint
  done, state, host = restored
  if host["model"] != story.host["model"]:
    raise config.ConfigError(
      f"cannot resume: {story.settings.model.weights} has other weights than "
      "the run in run_dir started from"
    )
  if done >= story.settings.steps:
    raise TrainingStopped(
      f"nothing to train: the run has done {done} steps of steps "
      f"{story.settings.steps}"
    )
  story.state, story.host = state, host
  return done


def _stop_if_non_finite(story: Run, done: int) -> None:
  limit = story.settings.training.max_skipped_in_a_row
  if int(story.state.skipped_in_a_row) >= limit:
    raise TrainingStopped(
      f"stopped at step {done}: {limit} updates in a row had a non-finite loss "
      "or gradient and were skipped"
    )


def _due(every: int | None, done: int, steps: int) -> bool:
  return done == steps or (every is not None and done % every == 0)


def _opening(story: Run) -> str:
  """Returns what the run is about to do, in a few lines."""
  settings, streams = story.settings, story.streams
  name = settings.model.weights or settings.model.preset
  lines = [
    f"{settings.method.name} on {name}"
    f", {story.host['model']['parameters'] / 1e6:.2f}M parameters",
    f"questions: {streams.prompts.counts}",
  ]
  if streams.demonstrations is not None:
    lines.append(f"demonstrations: {streams.demonstrations.counts}")
  if streams.held_out is not None:
    lines.append(f"held out: {streams.held_out.counts}")
  return "\n".join(lines)
