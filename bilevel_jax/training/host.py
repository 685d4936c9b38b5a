"""What a method's host-side program works with: `contract.Host`, on a run."""

import dataclasses
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bilevel_jax.methods import contract
from bilevel_jax.random_streams import Stream
from bilevel_jax.rewards import overlong
from bilevel_jax.rollout import answers as answers_lib
from bilevel_jax.rollout import assemble, packing, rounds
from bilevel_jax.training import run as run_lib
from bilevel_jax.training import sharding, teaching, throughput
from bilevel_jax.types import (
  Demonstration,
  Requests,
  RLBatch,
  Sampling,
  Taught,
  TokenBatch,
)


class Host:
  """A step of a run, as its method's program sees it.

  Attributes:
    logged: the step's numbers so far.
    answers: what was sampled last; None: nothing.
    made: batches that were made, packed, on the host.
    sampling_s: seconds that sampling and scoring took.
  """

  def __init__(self, run: run_lib.Run, step: int, plan: contract.Plan):
    """Begins a step.

    Args:
      run: its streams move on as the step asks for more.
    """
    self._run, self.step, self.plan = run, step, plan
    self.steps = run.settings.steps
    self.updates = run.settings.updates_per_step
    self.parts = run.settings.rl.updates_per_rollout
    self.memory: dict[str, Any] = run.host["method"]
    self.logged: dict[str, float] = {}
    self.answers: answers_lib.Answers | None = None
    self.made: list[TokenBatch] = []
    self.taught: list[TokenBatch] = []
    self.sampling_s = 0.0

  def sample(self, guide: rounds.Guide | None = None) -> answers_lib.Answers:
    """Returns the policy's scored answers to the next questions.

    Measures and the count of tokens are of all that was sampled, whatever is
    learned from in the end.
    """
    started = time.perf_counter()
    run, settings = self._run, self._run.settings
    most = settings.rollout.rounds_for_signal
    everything, answered, with_signal = rounds.dynamic_sampling(
      lambda: self._ask(guide), rounds=most or 1
    )
    run.host["tokens"] += answers_lib.sampled_tokens(everything)
    self.log(answers_lib.measure(everything, settings.reward.verifiers))
    rollout = answered.rollout
    counted = np.ones(len(rollout.lengths), bool)
    if most is not None:
      counted &= np.repeat(with_signal, settings.rollout.samples_per_prompt)
      asked = everything.rollout.requests.prompts
      self.log(
        {
          "rollout/questions": float(len(asked)),
          "rollout/groups_with_signal": float(with_signal.sum()),
        }
      )
    if settings.rl.truncated == "drop":
      counted &= ~rollout.truncated
      self.log({"rl/truncated_out": float(rollout.truncated.mean())})
    if (interval := settings.reward.overlong_tokens) is not None:
      penalty = settings.reward.overlong_penalty * overlong.soft_penalty(
        rollout.lengths,
        longest=settings.rollout.max_new_tokens,
        interval=interval,
      )
      self.log({"rl/overlong_penalty": float(penalty.mean())})
      answered = answers_lib.with_bonus(answered, penalty)
    self.log(
      throughput.phase(
        "rollout",
        answered.rollout_s,
        tokens=int(rollout.lengths.sum()),
        flops=throughput.rollout_flops(run.model.architecture, rollout),
        devices=run.mesh.devices.flat,
      )
    )
    self.answers = dataclasses.replace(answered, counted=counted)
    self.sampling_s += time.perf_counter() - started
    return self.answers

  def groups(self, answers: answers_lib.Answers) -> contract.Groups:
    """See `contract.Host.groups`."""
    rollout, scores = answers.rollout, answers.scores
    shape = (-1, rollout.requests.samples_per_prompt)
    questions = answers.questions[:: shape[1]]
    own = self._run.streams.demonstrations
    counted = scores.scored & answers.counted
    sampled = rollout.lengths - rollout.prefix_lengths
    return contract.Groups(
      rewards=scores.rewards.reshape(shape),
      correct=scores.correct.reshape(shape),
      scored=scores.scored.reshape(shape),
      truncated=rollout.truncated.reshape(shape),
      prefix_lengths=rollout.prefix_lengths.reshape(shape),
      lengths=np.where(counted, sampled, 0).reshape(shape),
      demonstrations=own.of(questions) if own else [None] * len(questions),
    )

  def rl(
    self,
    answers: answers_lib.Answers,
    *,
    counted: np.ndarray | None = None,
    advantages: np.ndarray | None = None,
    count_from: np.ndarray | None = None,
    given_apart: bool = False,
  ) -> list[RLBatch]:
    """See `contract.Host.rl`."""
    run, settings = self._run, self._run.settings
    scores = answers.scores
    if counted is not None:
      scored = scores.scored & counted.ravel()
      scores = dataclasses.replace(scores, scored=scored)
    batches = assemble.minibatches(
      answers.rollout,
      scores,
      run.learner.rl_weighting,
      normalise=settings.rl.advantage,
      advantages=None if advantages is None else advantages.ravel(),
      counted=answers.counted,
      skipped=None if count_from is None else count_from.ravel(),
      given_apart=given_apart,
      updates=settings.rl.updates_per_rollout,
      passes=settings.rl.passes_per_rollout,
      seed=(settings.seed, self.step),
      columns=run.learner.rollout_columns,
    )
    if run.learner.skip_idle:
      batches = [assemble.skip_idle(batch) for batch in batches]
    if (temperature := self.plan.temperature) is not None:
      batches = [
        dataclasses.replace(batch, temperature=np.float32(temperature))
        for batch in batches
      ]
    packed = [packing.pack(batch, run.learner.packing) for batch in batches]
    self.made += packed
    placed = sharding.place_batch(packed, run.mesh)
    return [self._with_logprobs(batch) for batch in placed]

  def teacher(self, answers: answers_lib.Answers) -> list[Taught]:
    """See `contract.Host.teacher`."""
    run, settings, rollout = self._run, self._run.settings, answers.rollout
    questions = answers.questions[:: rollout.requests.samples_per_prompt]
    own = run.streams.demonstrations
    most = run.model.policy.max_positions
    template = run.learner.method.needs.teacher
    assert template is not None
    owned = own.of(questions) if own else [None] * len(questions)
    prompts = []
    for question, found in zip(questions, owned, strict=True):
      tokens = np.zeros(0, np.int32)
      if found is not None:
        tokens = teaching.prompt_tokens(
          run.model.tokenizer, template, question, found
        )
      longest = len(tokens) + settings.rollout.max_new_tokens
      prompts.append(tokens if most is None or longest <= most else tokens[:0])
    taught = sum(len(tokens) > 0 for tokens in prompts) / len(prompts)
    self.log({"mix/taught_questions": taught})
    batches = [
      packing.pack(batch, run.learner.packing)
      for batch in assemble.taught(
        rollout,
        prompts,
        updates=settings.rl.updates_per_rollout,
        passes=settings.rl.passes_per_rollout,
        seed=(settings.seed, self.step),
        columns=run.learner.rollout_columns,
      )
    ]
    self.taught += batches
    return sharding.place_batch(batches, run.mesh)

  def demonstrations(self) -> list[Demonstration]:
    """See `contract.Host.demonstrations`."""
    run, stream = self._run, self._run.streams.demonstrations
    wanted = run.settings.data.demonstrations_per_step // self.updates
    if stream is None:
      return []
    sampled = stream.take(run.host["demonstrations"], wanted)
    run.host["demonstrations"] += len(sampled)
    return sampled

  def demonstrations_at(self, ids: Iterable[int]) -> list[Demonstration]:
    """See `contract.Host.demonstrations_at`."""
    stream = self._run.streams.demonstrations
    return stream.at(ids) if stream else []

  def sft(
    self,
    demonstrations: Sequence[Demonstration],
    *,
    rows: int | None = None,
    coefficients: np.ndarray | None = None,
    group_advantages: np.ndarray | None = None,
  ) -> TokenBatch:
    """See `contract.Host.sft`."""
    learner, data = self._run.learner, self._run.settings.data
    batch = assemble.demonstration_batch(
      demonstrations,
      learner.sft_weighting,
      rows=rows or max(data.demonstrations_per_step // self.updates, 1),
      columns=learner.demonstration_columns,
      coefficients=coefficients,
      group_advantages=group_advantages,
      with_logprobs=learner.method.needs.expert == "demonstrations",
    )
    given = self.logged.get("sft/demonstrations", 0.0)
    self.log({"sft/demonstrations": given + len(demonstrations)})
    packed = packing.pack(batch, learner.packing)
    self.made.append(packed)
    return sharding.place_batch(packed, self._run.mesh)

  def text(self, tokens: Any) -> str:
    """See `contract.Host.text`."""
    return self._run.model.tokenizer.decode(tokens)

  def random(self) -> np.random.Generator:
    """See `contract.Host.random`."""
    return np.random.default_rng((self._run.settings.seed, self.step))

  def log(self, numbers: Mapping[str, float]) -> None:
    """See `contract.Host.log`."""
    self.logged.update(numbers)

  def flops(self) -> float | None:
    """Returns the operations of the step's updates; None: not known."""
    taken = self._run.learner.method.needs.gradients
    if taken is None:
      return None
    architecture = self._run.model.architecture
    rl = sft = 0.0
    for batch in self.made:
      forward = throughput.batch_flops(architecture, batch)
      if isinstance(batch, RLBatch):
        rl += forward
      else:
        sft += forward
    scorings = self._scores_old + (self._run.reference_tree() is not None)
    # A frozen base's own gradient, a third of an update, is not taken.
    passes = 3 if self._run.frozen is None else 2
    teacher = sum(throughput.batch_flops(architecture, b) for b in self.taught)
    return passes * (taken.rl * rl + taken.sft * sft) + scorings * rl + teacher

  @property
  def _scores_old(self) -> bool:
    """Whether log-probs of before the updates go with the rollouts."""
    return self.updates > 1 or self.plan.old_logprobs

  def _ask(self, guide: rounds.Guide | None) -> answers_lib.Answers:
    """Returns the policy's scored completions of the next questions."""
    run, settings, plan = self._run, self._run.settings, self.plan
    rollout, position = settings.rollout, run.host["questions"]
    questions, prompts, ids = run.streams.prompts.take(
      position, settings.data.prompts_per_step
    )
    run.host["questions"] += len(questions)
    requests = Requests(
      prompts=prompts,
      prompt_ids=ids,
      samples_per_prompt=rollout.samples_per_prompt,
      max_new_tokens=max(round(plan.length_share * rollout.max_new_tokens), 1),
      eos_ids=run.model.tokenizer.eos_ids,
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
      key=Stream.ROLLOUT.key(settings.seed, self.step),
    )
    ask = functools.partial(
      answers_lib.answer,
      run.model.policy,
      run.weights(),
      decoder=run.model.tokenizer,
      scorer=run.scorer,
      max_rows=rollout.max_rows,
      cache_bytes=run.cache_bytes,
      sharding=run.rows,
    )
    if guide is None:
      return ask(questions, requests)
    return rounds.guided(
      ask,
      questions,
      requests,
      guide,
      run.streams.demonstrations,
      step=self.step,
      seed=(settings.seed, position),
    )

  def _with_logprobs(self, batch: RLBatch) -> RLBatch:
    """Returns a batch on the devices with the log-probs that it needs."""
    run = self._run
    found = {}
    if self._scores_old:  # of the policy that sampled
      found["old_logprobs"] = run.learner.programs.logprobs(
        run.state.base, run.state.adapter, batch, run.frozen
      )
    if run.expert is not None:
      found["expert_logprobs"] = run.expert(batch)
    if (reference := run.reference_tree()) is not None:
      found["ref_logprobs"] = run.learner.programs.logprobs(
        reference, None, batch, run.frozen
      )
    return dataclasses.replace(batch, **found)
