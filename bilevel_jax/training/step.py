"""One step of a run: sample, score, assemble, update."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from bilevel_jax.methods import contract
from bilevel_jax.rollout import answers, assemble, packing, routing
from bilevel_jax.training import display, metrics, sharding
from bilevel_jax.training import learner as learner_lib
from bilevel_jax.training import run as run_lib
from bilevel_jax.types import Requests, RLBatch, Sampling, StepBatch, TokenBatch


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
  batches, logged["time/padding_share"] = _batches(
    story, step, plan, answered, routed
  )
  for batch in batches:
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
) -> tuple[list[StepBatch], float]:
  """Returns what each update of a step sees, and the share of it to no use."""
  settings, learner = story.settings, story.learner
  count = learner_lib.updates_per_step(settings)
  rl: list[Any] = [None] * count
  if answered is not None:
    rl = assemble.minibatches(
      answered.rollout,
      routed.scores if routed else answered.scores,
      learner.rl_weighting,
      normalise=settings.rl.advantage,
      advantages=routed.advantages if routed else None,
      updates=settings.rl.updates_per_rollout,
      passes=settings.rl.passes_per_rollout,
      seed=(settings.seed, step),
    )
    if learner.skip_idle:
      rl = [assemble.skip_idle(batch) for batch in rl]
  sft: list[Any] = [None] * count
  if routed and plan.demonstrations:
    sft = [
      routed.demonstrations(number, learner.sft_weighting)
      for number in range(count)
    ]
  elif plan.demonstrations:
    sft = [_demonstrations(story, count) for _ in range(count)]
  parts = [
    packing.pack(part, learner.packing)
    for part in (*rl, *sft)
    if part is not None
  ]
  share = packing.padding_share(parts)
  placed = iter(sharding.place_batch(parts, story.mesh))
  rl = [None if part is None else next(placed) for part in rl]
  sft = [None if part is None else next(placed) for part in sft]
  # Before the first update: old log-probs are of the policy that sampled.
  old = count > 1 or plan.old_logprobs
  return [
    StepBatch(rl=part and _with_logprobs(story, part, old), sft=other)
    for part, other in zip(rl, sft, strict=True)
  ], share


def _with_logprobs(
  story: run_lib.Run, batch: RLBatch, old_logprobs: bool
) -> RLBatch:
  """Returns an RL batch with the log-probs that it needs, on the devices."""
  logprobs = story.learner.programs.logprobs
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


def _demonstrations(story: run_lib.Run, updates: int) -> TokenBatch:
  """Returns an update's share of the step's demonstrations."""
  wanted = story.settings.data.demonstrations_per_step // updates
  pairs = []
  if story.streams.demonstrations is not None:
    pairs = story.streams.demonstrations.take(
      story.host["demonstrations"], wanted
    )
  story.host["demonstrations"] += len(pairs)
  return assemble.token_batch(
    pairs, story.learner.sft_weighting, rows=max(wanted, 1)
  )
