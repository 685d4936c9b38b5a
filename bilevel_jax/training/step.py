"""One step of a run: sample, score, assemble, update."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bilevel_jax.methods import contract
from bilevel_jax.rollout import answers, assemble, routing
from bilevel_jax.training import display, metrics
from bilevel_jax.training import learner as learner_lib
from bilevel_jax.training import run as run_lib
from bilevel_jax.types import Requests, Sampling, StepBatch


def take(
  story: run_lib.Run,
  step: int,
  writers: metrics.Writers,
  screen: display.Display,
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
    if run_lib.due(settings.logging.show_every, step + 1, settings.steps):
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


def _sample(story: run_lib.Run, step: int) -> answers.Answers:
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
    key=run_lib.key(settings, "rollout", step),
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
  story: run_lib.Run,
  step: int,
  plan: contract.Plan,
  answered: answers.Answers | None,
  routed: routing.Routed | None,
) -> Iterator[StepBatch]:
  """Yields what each update of a step sees, on the devices."""
  settings, learner = story.settings, story.learner
  count = learner_lib.updates_per_step(settings)
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


def _with_logprobs(story: run_lib.Run, batch: Any, old_logprobs: bool) -> Any:
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


def _demonstrations(story: run_lib.Run, updates: int, multiple: int) -> Any:
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
