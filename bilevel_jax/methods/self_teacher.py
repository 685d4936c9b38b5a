"""The policy as its own teacher, once it was shown the demonstration.

On the policy's own rollouts: what the same weights think of each token when the
question's demonstration is in their prompt. SDFT (arXiv 2601.19897), OPSD
(2601.18734) and, with a reward, SDPG (2606.04036) are settings.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, kdrl, updates
from bilevel_jax.types import RLBatch, StepBatch, Taught, TrainState, Tree


@dataclasses.dataclass(frozen=True)
class Options(kdrl.Listening):
  weights: Literal["policy", "average", "start"] = setting(
    "policy",
    "the teacher's weights: those that learn, as they are; their slow average; "
    "or those that the run began with",
  )
  average_decay: float = setting(
    0.99, "what the slow average keeps in an update", at_least=0, at_most=1
  )
  prompt: str = setting(
    "{question}\n\nThis is an example of an answer:\n{solution}\n\n"
    "Answer in your own words.",
    "what the teacher is asked, with {question} and {solution}; "
    "tokenizer.prompt is put around it, as around a question",
  )
  measure: Literal["k2", "k3", "forward", "reverse", "js"] = setting(
    "k2",
    "distance from the teacher: by the sampled tokens (k2, k3), or of whole "
    "distributions, KL(teacher || policy), KL(policy || teacher), or "
    "Jensen-Shannon's",
  )
  top: int | None = setting(
    None,
    "of whole distributions the teacher's likeliest tokens, all others as one; "
    "None: the vocabulary",
    at_least=1,
  )
  weight: float = setting(0.1, "weight of the distance", at_least=0)
  rl_weight: float = setting(
    1.0, "what advantages are multiplied by; 0: no reward", at_least=0
  )


def rules(options: Options, settings: Any) -> Iterator[str]:
  """Yields a sentence for each rule that the settings break."""
  for name in ("{question}", "{solution}"):
    if name not in options.prompt:
      yield (
        f"method.self_teacher.prompt must have {name}, got {options.prompt!r}"
      )
  if options.top is not None and options.measure in kdrl.ESTIMATES:
    yield (
      "method.self_teacher.top is of whole distributions: measure must be "
      f"forward, reverse or js, got {options.measure}"
    )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns RL plus `weight` times a distance from the teacher.

  The distance is taken at each token of the policy's own samples, whose
  questions have a demonstration of their own; samples are held still. By k2 or
  k3 it shifts a token's advantage (`kdrl`), the others are losses of a token.
  """
  sampled = options.measure in kdrl.ESTIMATES
  keeps = options.weights != "policy"
  plan = contract.Plan(rollouts=True, demonstrations=False)

  def init(base: Tree, adapter: Tree | None) -> TrainState:
    extra = {"teacher": jax.tree.map(jnp.copy, base)} if keeps else None
    return contract.new_state(setup.optimizers, base=base, extra=extra)

  def batches(host: contract.Host) -> Iterator[StepBatch]:
    answers = host.sample()
    taught = host.teacher(answers)
    for rollouts, teacher in zip(host.rl(answers), taught, strict=True):
      yield StepBatch(rl=rollouts, sft=None, teacher=teacher)

  def shifted(logprobs, entropies, batch):
    shift = kdrl.opinion(batch.expert_logprobs - logprobs, options.measure)
    heard = batch.teacher_weights[:, None]
    return batch.advantages + jnp.where(heard > 0, heard * shift, 0.0)

  def update(state: TrainState, batch: StepBatch[RLBatch, None]):
    teacher, seen, rows = batch.teacher, state.base, batch.rl
    assert teacher is not None
    if keeps:
      seen = state.extra["teacher"]
    taught = jnp.any(teacher.places >= 0, axis=1)
    heard = taught * options.heard(rows)
    rows = dataclasses.replace(
      rows,
      advantages=options.rl_weight * rows.advantages,
      teacher_weights=jnp.float32(options.weight) * heard,
    )
    if sampled:
      opinion = at_places(setup.teacher.logprobs(seen, None, teacher), teacher)
      rows = dataclasses.replace(rows, expert_logprobs=opinion)
      objective = setup.rl_loss(advantages=shifted)
    else:
      states = at_places(setup.teacher.states(seen, teacher), teacher)
      rows = dataclasses.replace(rows, teacher_states=states)
      objective = setup.rl_loss(
        divergence=setup.teacher.divergence(
          seen, kind=options.measure, top=options.top
        )
      )
    descend = updates.descent(setup, "rl", objective=objective)
    done = descend(state, StepBatch(rl=rows, sft=None))
    if options.weights == "average":
      moved = jax.tree.map(
        lambda slow, now: (
          options.average_decay * slow + (1 - options.average_decay) * now
        ),
        state.extra["teacher"],
        done.state.base,
      )
      done = done._replace(
        state=dataclasses.replace(done.state, extra={"teacher": moved})
      )
    scored = jnp.sum(rows.scored).clip(min=1)
    share = jnp.sum(heard * rows.scored) / scored
    return done._replace(metrics={**done.metrics, "mix/taught_share": share})

  return contract.Method(
    needs=contract.Needs(
      demonstrations="own", teacher=options.prompt, every_rollout=True
    ),
    init=init,
    plan=lambda step, scalars: plan,
    update=update,
    batches=batches,
  )


def at_places(values: jax.Array, teacher: Taught) -> jax.Array:
  """Returns what the teacher has for each token of the rollouts, else 0.

  Args:
    values: [B, T', ...], of the teacher's columns.
    teacher: whose `places` are [B, T].
  """
  places = jnp.asarray(teacher.places)
  wide = places.reshape(*places.shape, *(1,) * (values.ndim - 2))
  found = jnp.take_along_axis(values, wide.clip(min=0), axis=1)
  return jnp.where(wide >= 0, found, 0.0)
