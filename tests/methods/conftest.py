"""A tabular problem small enough to know every answer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import config, types
from bilevel_jax.bilevel.problem import Objective, Problem
from bilevel_jax.methods import contract, terms
from bilevel_jax.objectives import policy_gradient, weighting
from bilevel_jax.rollout import assemble
from bilevel_jax.training import learner
from tests import tabular

VOCABULARY = 7
RATE = 0.1  # the world's learning rate


def advantages(rewards, scored):
  """Returns those of the world's `rl.advantage`, and baselines."""
  return policy_gradient.group_advantages(
    rewards, scored, np.ones(scored.shape, int), normalise="group_mean"
  )


def groups(rewards, **changes) -> contract.Groups:
  """Returns groups with these rewards [P, G], all demonstrated and scored."""
  rewards = np.array(rewards, np.float32)
  fields = {
    "correct": rewards > 0,
    "scored": np.ones(rewards.shape, bool),
    "truncated": np.zeros(rewards.shape, bool),
    "prefix_lengths": np.zeros(rewards.shape, int),
    "demonstrated": np.ones(len(rewards), bool),
  } | {name: np.array(value) for name, value in changes.items()}
  fields.setdefault("lengths", 2 * fields["scored"])
  demonstrations = [
    types.Demonstration(10 + i, np.array([1]), np.array([2, 3]))
    if has
    else None
    for i, has in enumerate(fields.pop("demonstrated"))
  ]
  return contract.Groups(
    rewards=rewards, demonstrations=demonstrations, **fields
  )


GROUPS = groups(
  [[0.0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]],
  scored=np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]], bool),
  truncated=np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]], bool),
  demonstrated=[True, True, False, False],
)


def scalars(state: types.TrainState) -> dict[str, float]:
  """Returns what `Method.plan` may read of a state."""
  return {
    name: float(x)
    for name, x in state.extra.items()
    if getattr(x, "shape", None) == ()
  }


@dataclasses.dataclass
class Host:
  """A step whose answers are `groups`, and that keeps what it is asked for."""

  world: "World"
  given: contract.Groups
  plan: contract.Plan
  step: int = 0
  steps: int = 10
  updates: int = 1
  parts: int = 1
  memory: dict = dataclasses.field(default_factory=dict)
  guide: Any = None
  reference: np.ndarray | None = None
  logged: dict = dataclasses.field(default_factory=dict)
  rl_asked: dict = dataclasses.field(default_factory=dict)
  sft_asked: list = dataclasses.field(default_factory=list)
  batches: list = dataclasses.field(default_factory=list)

  def sample(self, guide=None):
    self.guide = guide
    return None

  def groups(self, answers):
    del answers
    return self.given

  def rl(self, answers, **how):
    del answers
    self.rl_asked = {"counted": None, "count_from": None} | how
    batch = self.world.rl
    if self.guide is not None:
      batch = with_prefixes(batch)
    if self.plan.old_logprobs and batch.old_logprobs is None:
      old = np.full(batch.weights.shape, -2.0, np.float32)
      batch = dataclasses.replace(batch, old_logprobs=old)
    batch = dataclasses.replace(batch, ref_logprobs=self.reference)
    return [batch] * self.updates

  def teacher(self, answers):
    """The same rows: what the policy thinks of them without another prompt."""
    del answers
    fields = {
      f.name: getattr(self.world.rl, f.name)
      for f in dataclasses.fields(types.TokenBatch)
    }
    tokens = np.asarray(fields["tokens"])
    places = np.where(
      np.asarray(fields["weights"]) > 0, np.arange(tokens.shape[1]), -1
    )
    return [types.Taught(**fields, places=places)] * self.updates

  def demonstrations(self):
    return [types.Demonstration(0, np.array([1]), np.array([2]))]

  def demonstrations_at(self, ids):
    return [types.Demonstration(i, np.array([1]), np.array([2])) for i in ids]

  def sft(self, demonstrations, **how):
    self.sft_asked.append(how | {"ids": [d.id for d in demonstrations]})
    return self.world.sft

  def text(self, tokens):
    return " ".join(map(str, tokens))

  def random(self):
    return np.random.default_rng((0, self.step))

  def log(self, numbers):
    self.logged.update(numbers)


@dataclasses.dataclass
class World:
  """A policy, batches with unequal lengths, and methods built over them."""

  policy: types.Policy
  base: types.Tree
  adapter: types.Tree
  sft: types.TokenBatch
  rl: types.RLBatch

  def problem(self, *, kl_coef: float = 0.0) -> Problem:
    return Problem(
      upper=terms.sft_objective(self.policy, chunk=64),
      lower=self.rl_loss(kl_coef),
    )

  def rl_loss(self, kl_coef: float = 0.0, **own) -> Objective:
    return terms.rl_objective(
      self.policy,
      numbers=policy_gradient.PolicyGradient(
        kl_coef=kl_coef, importance_cap=None
      ),
      temperature=1.0,
      chunk=64,
      **own,
    )

  def method(
    self,
    name: str,
    *,
    kl_coef=0.0,
    adam: float | None = None,
    total_updates=10,
    updates_per_step=1,
    settings: dict[str, Any] | None = None,
    **options,
  ) -> contract.Method:
    """Returns the method as a run builds it; options are its own settings.

    Its base moves by SGD at RATE, or by Adam at the rate that is given.
    """
    changes = {
      "rl.kl_coef": kl_coef,
      "rl.updates_per_rollout": updates_per_step,
      "data.demonstrations_per_step": 4 * updates_per_step,
      "steps": total_updates // updates_per_step,
      **(settings or {}),
    }
    if adam is not None:
      changes |= {
        "optimizer.base.name": "adamw",
        "optimizer.base.learning_rate": adam,
      }
    own = {f"method.{name}.{key}": value for key, value in options.items()}
    members = np.zeros(len(np.asarray(self.sft.tokens)), np.int32)
    return learner.build_method(
      settings_of(name, changes | own),
      self.policy,
      contract.DemonstrationGroups(members=members),
    )

  def start(self, method: contract.Method, **changes) -> types.TrainState:
    adapter = self.adapter if method.needs.adapter else None
    state = jax.jit(method.init)(self.base, adapter)
    return dataclasses.replace(state, **changes)

  def host(
    self,
    method: contract.Method,
    given: contract.Groups = GROUPS,
    step: int = 0,
    own: dict[str, float] | None = None,
    **changes,
  ) -> Host:
    """Returns the host of a step, whose program has run to its end.

    `own` are scalars of the method's state, in place of those of its start.
    """
    found = scalars(self.start(method)) | (own or {})
    host = Host(self, given, method.plan(step, found), step=step, **changes)
    if method.needs.reference == "own":
      host.reference = np.full(self.rl.weights.shape, -2.1, np.float32)
    host.batches += method.batches(host)
    return host

  def batch(
    self, method: contract.Method | None = None, step: int = 0
  ) -> types.StepBatch:
    """Returns both parts, or what the method's first update of a step sees."""
    if method is None:
      return types.StepBatch(rl=self.rl, sft=self.sft)
    return self.host(method, step=step).batches[0]

  def kinds(self, method: contract.Method) -> list[types.StepBatch]:
    """Returns a batch of each kind that updates see in ten steps."""
    found = {}
    for step in range(10):
      for own in ({}, {"sft_next": 0.0}):
        for batch in self.host(method, step=step, own=own).batches:
          kind = batch.rl is not None, batch.sft is not None
          found.setdefault(kind, batch)
    return list(found.values())


def settings_of(name: str, changes: dict[str, Any]) -> config.Config:
  """Returns a run's settings with this method, for a tabular policy."""
  c = config.default_config()
  c.model.preset = "tiny-llama"
  c.model.logprob_chunk = 64
  c.data.questions.task = "arithmetic"
  c.data.prompts_per_step = 4
  c.rollout.samples_per_prompt = 4
  c.rl.advantage = "group_mean"
  c.rl.importance_cap = None
  c.method.name = name
  for group in (c.optimizer.base, c.optimizer.adapter):
    group.name, group.clip_norm = "sgd", None
    group.learning_rate = RATE
  for path, value in changes.items():
    *groups, last = path.split(".")
    group = c
    for part in groups:
      group = group[part]
    with group.unlocked(), group.ignore_type():
      group[last] = value
  return config.parse(c)


def with_prefixes(batch: types.RLBatch) -> types.RLBatch:
  """Returns the batch with the first half of each odd row's tokens given."""
  counted = np.asarray(batch.weights) > 0
  place = counted.cumsum(axis=1)
  prefixed = counted & (2 * place <= counted.sum(axis=1, keepdims=True))
  prefixed[::2] = False
  return dataclasses.replace(batch, prefixed=prefixed.astype(np.float32))


def pairs(rng, count):
  draw = lambda low, high: rng.integers(
    0, VOCABULARY, rng.integers(low, high)
  ).astype(np.int32)
  return [(draw(1, 5), draw(1, 9)) for _ in range(count)]


def rl_batch(rng, count) -> types.RLBatch:
  plain = assemble.token_batch(pairs(rng, count), weighting.token_mean)
  questions = np.arange(count, dtype=np.int32) // 4
  correct = (np.arange(count) % 3 == 0).astype(np.float32)
  right = np.bincount(questions, correct) / np.bincount(questions)
  return types.RLBatch(
    **{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)},
    advantages=(rng.normal(size=(count, 1)) * (plain.weights > 0)).astype(
      np.float32
    ),
    rewards=rng.random(count).astype(np.float32),
    baselines=np.full(count, 0.5, np.float32),
    scored=np.ones(count, np.float32),
    sampler_logprobs=np.zeros(plain.tokens.shape, np.float32),
    old_logprobs=None,
    ref_logprobs=None,
    questions=questions,
    correct=correct,
    accuracy=right[questions].astype(np.float32),
  )


def batches(rng, *, sft: int, rl: int) -> types.StepBatch:
  """Returns so many rows of random tokens, of unequal lengths."""
  demonstrations = assemble.token_batch(pairs(rng, sft), weighting.token_mean)
  rollouts = rl_batch(rng, rl)
  expert = lambda batch: -rng.random(batch.tokens.shape, np.float32)
  return types.StepBatch(
    sft=dataclasses.replace(
      demonstrations,
      ids=np.arange(sft, dtype=np.int32),
      expert_logprobs=expert(demonstrations),
      group_advantages=rng.random((sft, 1), np.float32),
    ),
    rl=dataclasses.replace(rollouts, expert_logprobs=expert(rollouts)),
  )


@pytest.fixture
def world() -> World:
  return make_world()


def make_world(train: str = "all") -> World:
  rng = np.random.default_rng(0)
  policies = {"all": tabular.policy, "adapter": tabular.over_frozen}
  policy = policies[train](VOCABULARY)
  adapter = policy.init_adapter(jax.random.key(1))
  adapter["B"] = 0.3 * jax.random.normal(
    jax.random.key(2), adapter["B"].shape, jnp.float32
  )
  sampled = batches(rng, sft=6, rl=8)
  return World(
    policy=policy,
    base=policy.init(jax.random.key(0)),
    adapter=adapter,
    sft=sampled.sft,
    rl=sampled.rl,
  )
