"""One step of a run: sample, score, assemble, update."""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from bilevel_jax.methods import contract
from bilevel_jax.models import presets
from bilevel_jax.rewards import overlong
from bilevel_jax.rollout import (
  answers,
  assemble,
  endings,
  packing,
  rounds,
  routing,
)
from bilevel_jax.training import learner as learner_lib
from bilevel_jax.training import run as run_lib
from bilevel_jax.training import sharding, throughput
from bilevel_jax.types import (
  Requests,
  RLBatch,
  Sampling,
  StepBatch,
  TokenBatch,
  Tree,
)


class _Work(NamedTuple):
  """What the updates of a step see, on the devices and on the host."""

  batches: list[StepBatch]
  rl: list[RLBatch]
  sft: list[TokenBatch]
  scorings: int  # forward passes over the rollouts, for other log-probs

  def flops(
    self, architecture: presets.Architecture, taken: contract.Gradients | None
  ) -> float | None:
    """Returns the operations of the updates; None: not known."""
    if taken is None:
      return None
    rl, sft = (
      sum(throughput.batch_flops(architecture, part) for part in parts)
      for parts in (self.rl, self.sft)
    )
    return 3 * (taken.rl * rl + taken.sft * sft) + self.scorings * rl


class _Sampled(NamedTuple):
  """A step's answers, and which of them are to be learned from."""

  answers: answers.Answers
  counted: np.ndarray  # [N] bool
  skipped: np.ndarray | None  # [N], see `assemble.rl_batch`
  routed: routing.Routed | None


class Taken(NamedTuple):
  """What a step did."""

  metrics: dict[str, float]
  answers: answers.Answers | None  # None: nothing was sampled


def take(story: run_lib.Run, step: int) -> Taken:
  """Samples, scores, assembles and updates; returns what came of it.

  Args:
    story: the run; its state and its streams move on.
    step: steps done before.
  """
  started = time.perf_counter()
  settings, learner = story.settings, story.learner
  logged: dict[str, float] = {}
  sampled = None
  plan = learner.method.plan(step)
  if learner.method.narrow is not None:
    plan = learner.method.narrow(story.state, plan)
  if plan.rollouts:
    sampled, measured = _sample(story, step, plan)
    logged |= measured
    rollout = sampled.answers.rollout
    logged |= throughput.phase(
      "rollout",
      sampled.answers.rollout_s,
      tokens=int(rollout.lengths.sum()),
      flops=throughput.rollout_flops(story.model.architecture, rollout),
      devices=story.mesh.devices.flat,
    )
  update_started = time.perf_counter()
  updates = []
  work = _work(story, step, plan, sampled)
  if learner.method.buffer is not None:
    logged["mix/held_back"] = float(len(story.host["held_back"]))
  for batch in work.batches:
    story.state, measured = learner.programs.update(story.state, batch)
    updates.append(measured)
  if learner.method.finish is not None and step + 1 == settings.steps:
    story.state = learner.programs.finish(story.state)
  updates = jax.device_get(updates)
  logged["time/update_s"] = time.perf_counter() - update_started
  flops = work.flops(story.model.architecture, learner.method.gradients)
  if flops is not None:
    story.host["update_flops"] += flops
    logged["training/update_flops"] = flops
    logged["training/update_flops_so_far"] = story.host["update_flops"]
  logged["time/padding_share"] = packing.padding_share([*work.rl, *work.sft])
  logged |= throughput.phase(
    "update",
    logged["time/update_s"],
    tokens=packing.held([*work.rl, *work.sft]),
    flops=flops,
    devices=story.mesh.devices.flat,
  )
  for name in {name: None for measured in updates for name in measured}:
    values = [measured[name] for measured in updates if name in measured]
    logged[name] = float(np.mean(values))
  logged["training/skipped_updates"] *= len(updates)
  if story.state.adapter is not None:
    logged["bilevel/adapter_delta_norm"] = float(
      learner.programs.delta_norm(story.state.base, story.state.adapter)
    )
  logged["rollout/tokens_so_far"] = story.host["tokens"]
  logged["time/step_s"] = time.perf_counter() - started
  return Taken(logged, sampled.answers if sampled else None)


def _sample(
  story: run_lib.Run, step: int, plan: contract.Plan
) -> tuple[_Sampled, dict[str, float]]:
  """Returns what the policy answers to the step's questions, and its measures.

  Measures and the count of tokens are of all that was drawn, whatever is
  learned from in the end.
  """
  settings, method = story.settings, story.learner.method
  most = settings.rollout.rounds_for_signal
  everything, answered, telling = rounds.until_telling(
    lambda: _answers(story, step, plan), rounds=most or 1
  )
  story.host["tokens"] += answers.drawn_tokens(everything)
  logged = answers.measure(everything)
  rollout = answered.rollout
  counted = np.ones(len(rollout.lengths), bool)
  if most is not None:
    counted &= np.repeat(telling, settings.rollout.samples_per_prompt)
    asked = everything.rollout.requests.prompts
    logged["rollout/questions"] = float(len(asked))
    logged["rollout/telling_groups"] = float(telling.sum())
  if settings.rl.truncated == "drop":
    counted &= ~rollout.truncated
    logged["rl/truncated_out"] = float(rollout.truncated.mean())
  if (interval := settings.reward.overlong_tokens) is not None:
    penalty = settings.reward.overlong_penalty * overlong.soft_penalty(
      rollout.lengths,
      longest=settings.rollout.max_new_tokens,
      interval=interval,
    )
    logged["rl/overlong_penalty"] = float(penalty.mean())
    answered = answers.with_bonus(answered, penalty)
  routed = skipped = None
  if method.lead is not None:
    decode = story.model.tokenizer.decode
    skipped = np.array(
      [
        endings.lead(row[:length], method.lead, decode)
        for row, length in zip(rollout.tokens, rollout.lengths, strict=True)
      ]
    )
    logged["rollout/lead_share"] = float(np.mean(skipped > 0))
  if method.route is not None:
    routed = routing.follow(
      method.route,
      answered,
      story.streams.demonstrations,
      parts=settings.rl.updates_per_rollout,
      seed=(settings.seed, step),
      step=step,
    )
    logged |= routed.metrics()
    skipped = routed.skipped
  return _Sampled(answered, counted, skipped, routed), logged


def _answers(
  story: run_lib.Run, step: int, plan: contract.Plan
) -> answers.Answers:
  """Returns the policy's scored completions of the next questions."""
  settings, rollout = story.settings, story.settings.rollout
  position, guide = story.host["questions"], story.learner.method.guide
  questions, prompts, ids = story.streams.prompts.take(
    position, settings.data.prompts_per_step
  )
  story.host["questions"] += len(questions)
  requests = Requests(
    prompts=prompts,
    prompt_ids=ids,
    samples_per_prompt=rollout.samples_per_prompt,
    max_new_tokens=max(round(plan.length_share * rollout.max_new_tokens), 1),
    eos_ids=story.model.tokenizer.eos_ids,
    stop=rollout.stop,
    total_tokens=rollout.total_tokens,
    sampling=Sampling(
      temperature=rollout.temperature
      if plan.temperature is None
      else plan.temperature,
      top_p=rollout.top_p,
      top_k=rollout.top_k,
      min_p=rollout.min_p,
    ),
    key=run_lib.key(settings, "rollout", step),
  )
  ask = functools.partial(
    answers.answer,
    story.model.policy,
    story.weights(),
    decoder=story.model.tokenizer,
    scorer=story.scorer,
    max_rows=rollout.max_rows,
    cache_bytes=story.cache_bytes,
    sharding=story.rows,
  )
  if guide is None:
    return ask(questions, requests)
  return rounds.guided(
    ask,
    questions,
    requests,
    guide,
    story.streams.demonstrations,
    step=step,
    seed=(settings.seed, position),
  )


def _work(
  story: run_lib.Run,
  step: int,
  plan: contract.Plan,
  sampled: _Sampled | None,
) -> _Work:
  """Returns what each update of a step sees."""
  settings, learner = story.settings, story.learner
  routed = sampled.routed if sampled else None
  count = learner_lib.updates_per_step(settings)
  rl: list[Any] = [None] * count
  if sampled is not None:
    rl = assemble.minibatches(
      sampled.answers.rollout,
      routed.scores if routed else sampled.answers.scores,
      learner.rl_weighting,
      normalise=settings.rl.advantage,
      advantages=routed.advantages if routed else None,
      counted=sampled.counted,
      skipped=sampled.skipped,
      updates=settings.rl.updates_per_rollout,
      passes=settings.rl.passes_per_rollout,
      seed=(settings.seed, step),
      columns=learner.rollout_columns,
    )
    if learner.skip_idle:
      rl = [assemble.skip_idle(batch) for batch in rl]
    if (temperature := plan.temperature) is not None:
      rl = [assemble.at_temperature(batch, temperature) for batch in rl]
  sft: list[Any] = [None] * count
  if routed and plan.demonstrations:
    sft = [
      routed.demonstrations(
        number,
        learner.sft_weighting,
        columns=learner.demonstration_columns,
      )
      for number in range(count)
    ]
  elif plan.demonstrations:
    sft = [_demonstrations(story, count) for _ in range(count)]
  held_back = _held_back(story, sampled)
  if held_back is not None:
    rl, sft = [*rl, None], [*sft, held_back]
  pack = lambda part: part and packing.pack(part, learner.packing)
  rl, sft = [pack(part) for part in rl], [pack(part) for part in sft]
  placed = sharding.place_batch((rl, sft), story.mesh)
  # Before the first update: old log-probs are of the policy that sampled.
  old = count > 1 or plan.old_logprobs
  reference = story.reference
  if learner.method.reference is not None:
    reference = learner.method.reference(story.state)
  return _Work(
    batches=[
      StepBatch(
        rl=part and _with_logprobs(story, part, old, reference), sft=other
      )
      for part, other in zip(*placed, strict=True)
    ],
    rl=[part for part in rl if part],
    sft=[part for part in sft if part],
    scorings=old + (reference is not None),
  )


def _held_back(
  story: run_lib.Run, sampled: _Sampled | None
) -> TokenBatch | None:
  """Returns the oldest demonstrations held back, once the buffer is full."""
  size, waiting = story.learner.method.buffer, story.host["held_back"]
  if size is None or sampled is None or sampled.routed is None:
    return None
  waiting += sampled.routed.held_back()
  if len(waiting) < size or story.streams.demonstrations is None:
    return None
  pairs = story.streams.demonstrations.named(waiting[:size])
  del waiting[:size]
  return assemble.token_batch(
    pairs,
    story.learner.sft_weighting,
    columns=story.learner.demonstration_columns,
  )


def _with_logprobs(
  story: run_lib.Run,
  batch: RLBatch,
  old_logprobs: bool,
  reference: Tree | None,
) -> RLBatch:
  """Returns an RL batch with the log-probs that it needs, on the devices."""
  logprobs = story.learner.programs.logprobs
  if old_logprobs:
    old = logprobs(story.state.base, story.state.adapter, batch)
    batch = dataclasses.replace(batch, old_logprobs=old)
  if story.expert is not None:
    opinion = story.expert.logprobs(batch)
    batch = dataclasses.replace(batch, expert_logprobs=opinion)
  if reference is not None:
    ref = logprobs(reference, None, batch)
    batch = dataclasses.replace(batch, ref_logprobs=ref)
  return batch


def _demonstrations(story: run_lib.Run, updates: int) -> TokenBatch:
  """Returns an update's share of the step's demonstrations."""
  wanted = story.settings.data.demonstrations_per_step // updates
  pairs, logprobs = [], None
  if story.streams.demonstrations is not None:
    drawn = story.host["demonstrations"], wanted
    pairs = story.streams.demonstrations.take(*drawn)
    if story.learner.method.expert == "demonstrations":
      logprobs = story.streams.demonstrations.take_logprobs(*drawn)
  story.host["demonstrations"] += len(pairs)
  if (mark := story.learner.method.lead) is not None:
    decode = story.model.tokenizer.decode
    pairs = [
      (prompt, solution[: endings.lead(solution, mark, decode)])
      for prompt, solution in pairs
    ]
  return assemble.token_batch(
    pairs,
    story.learner.sft_weighting,
    rows=max(wanted, 1),
    columns=story.learner.demonstration_columns,
    logprobs=logprobs,
  )
