"""The methods that BRIDGE is compared with: limits, identities, slopes."""

import dataclasses
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax.bilevel import problem as problem_lib
from bilevel_jax.methods import chord, diagnostics, terms
from bilevel_jax.objectives import policy_gradient, token_weights
from bilevel_jax.training import learner
from bilevel_jax.types import Demonstration
from tests.methods import conftest, sgd


def _run(world, name, steps=2, **settings):
  """Returns the base after steps of a method, and the metrics of each."""
  method = world.method(name, **settings)
  state, update, seen = world.start(method), jax.jit(method.update), []
  for step in range(steps):
    state, metrics, _ = update(state, world.batch(method, step))
    seen.append(metrics)
  return state.base, seen


@pytest.mark.parametrize(
  ("name", "options", "limit"),
  [
    ("mixed", {"sft_weight": 0.0}, "grpo"),
    ("gta", {"sft_weight": 0.0}, "grpo"),
    ("chord", {"peak": 0.0, "valley": 0.0}, "grpo"),
    ("chord", {"peak": 1.0, "valley": 1.0, "token_weight": "sft"}, "sft"),
    ("chord", {"peak": 1.0, "valley": 1.0}, "uncertain"),
    ("sft_then_rl", {"sft_share": 0.0}, "grpo"),
    ("sft_then_rl", {"sft_share": 1.0}, "sft"),
    (
      "meta_gradient",
      {"start": 0.0, "lowest": 0.0, "rate": 0.0},
      "grpo",
    ),
  ],
  ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_limit_is_the_simpler_method(world, name, options, limit):
  def doubt(base):
    """What a weight of p (1 - p) descends."""
    logprobs, _ = terms.token_logprobs(
      world.policy, base, None, world.sft, temperature=1.0, chunk=64
    )
    return jnp.sum(world.sft.weights * (1 - jnp.exp(logprobs)) ** 2) / 2

  base, _ = _run(world, name, **options)
  if limit == "uncertain":
    expected = world.base
    for _ in range(2):
      expected = sgd.descended(expected, jax.grad(doubt)(expected))
  else:
    expected, _ = _run(world, limit)
  chex.assert_trees_all_close(base, expected, atol=1e-6)
  assert optax.tree.norm(optax.tree.sub(base, world.base)) > 1e-3


def _gradients(world, base):
  return sgd.sft_gradient(world, base), sgd.rl_gradient(world, base)


def test_dft_ascends_the_mean_probability(world):
  """p's gradient is p grad log p: DFT's loss is minus p itself."""

  def mean_probability(base):
    logprobs, _ = terms.token_logprobs(
      world.policy, base, None, world.sft, temperature=1.0, chunk=64
    )
    return jnp.sum(world.sft.weights * jnp.exp(logprobs))

  after, _ = _run(world, "dft", steps=1)
  ascent = jax.grad(lambda base: -mean_probability(base))(world.base)
  chex.assert_trees_all_close(
    after, sgd.descended(world.base, ascent), atol=1e-6
  )


def test_mixed_descends_the_weighted_sum_and_logs_the_effective_mix(world):
  after, (metrics,) = _run(world, "mixed", steps=1, sft_weight=0.3)
  sft, rl = _gradients(world, world.base)
  total = jax.tree.map(lambda s, r: 0.3 * s + r, sft, rl)
  chex.assert_trees_all_close(
    after, sgd.descended(world.base, total), atol=1e-6
  )
  norms = 0.3 * optax.tree.norm(sft), optax.tree.norm(rl)
  np.testing.assert_allclose(
    metrics["mix/sft_share"], norms[0] / (norms[0] + norms[1]), rtol=1e-5
  )


def test_mixed_moves_an_adapter_down_the_same_sum(world):
  method = world.method("mixed", sft_weight=0.3, adapter=True)
  state = world.start(method)
  after, metrics = sgd.run(method, state, world.batch(method))
  problem = world.problem()

  def total(base, adapter):
    sft, _ = problem.upper(base, adapter, world.sft)
    rl, _ = problem.lower(base, adapter, world.rl)
    return 0.3 * sft + rl

  down = jax.grad(total, argnums=(0, 1))(world.base, world.adapter)
  chex.assert_trees_all_close(
    (after.base, after.adapter),
    sgd.descended((world.base, world.adapter), down),
    atol=1e-6,
  )
  norm = optax.tree.norm(down[1])
  assert norm > 1e-3
  np.testing.assert_allclose(
    metrics["optimizer/adapter_gradient_norm"], norm, rtol=1e-5
  )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gta_drops_an_sft_gradient_that_opposes_rl(world, sign):
  """Demonstrations as rollouts: RL agrees with SFT, or is its opposite."""
  count = len(world.sft.tokens)
  values = {
    f.name: getattr(world.rl, f.name)[:count]
    for f in dataclasses.fields(world.rl)
    if isinstance(getattr(world.rl, f.name), np.ndarray | jax.Array)
  } | {
    f.name: getattr(world.sft, f.name) for f in dataclasses.fields(world.sft)
  }
  shape = world.sft.weights.shape
  values["advantages"] = np.full(shape, 2 * sign, np.float32)
  values["sampler_logprobs"] = np.zeros(shape, np.float32)
  world.rl = dataclasses.replace(world.rl, **values)
  after, (metrics,) = _run(world, "gta", steps=1)
  sft, rl = _gradients(world, world.base)
  kept = optax.tree.add(sft, rl) if sign > 0 else rl
  chex.assert_trees_all_close(after, sgd.descended(world.base, kept), atol=1e-6)
  np.testing.assert_allclose(metrics["bilevel/gradient_cosine"], sign, 1e-5)


WORDS = ["<gu", "ess>", "4", "2</", "guess", ">", "so", "</guess>"]


class _Worded(conftest.Host):
  """Samples, and demonstrations of words; what SFT asks for is kept."""

  rows = (np.arange(8), np.arange(5), np.arange(0))

  def sample(self, guide=None):
    tokens = np.full((3, 9), 7)  # after its length, whatever it may be
    for kept, row in zip(tokens, self.rows, strict=True):
      kept[: len(row)] = row
    lengths = np.array([len(row) for row in self.rows])
    rollout = types.SimpleNamespace(tokens=tokens, lengths=lengths)
    return types.SimpleNamespace(rollout=rollout)

  def demonstrations(self):
    prompt = np.array([1])
    return [Demonstration(i, prompt, row) for i, row in enumerate(self.rows)]

  def sft(self, demonstrations, **how):
    self.sft_asked.append([list(d.solution) for d in demonstrations])
    return self.world.sft

  def text(self, tokens):
    return "".join(WORDS[token] for token in tokens)


@pytest.mark.parametrize(
  ("end", "guesses"), [("</guess>", [6, 0, 0]), ("<guess>", [2, 2, 0])]
)
def test_of_a_guess_gta_learns_by_sft_and_of_the_rest_by_rl(
  world, end, guesses
):
  """It ends with the token that completes its mark; without one is none."""
  method = world.method("gta", guess_end=end)
  host = _Worded(world, conftest.GROUPS, method.plan(0, {}), updates=2)
  batches = list(method.batches(host))
  assert [(b.rl is None, b.sft is None) for b in batches] == [
    (False, False)
  ] * 2
  assert host.rl_asked["count_from"].tolist() == guesses
  assert host.sft_asked == 2 * [[list(range(n)) for n in guesses]]
  share = np.mean(np.array(guesses) > 0)
  assert host.logged == {"rollout/guess_share": share}


def test_alternating_takes_each_step_with_its_own_rate(world):
  after, seen = _run(world, "alternating", steps=3, sft_learning_rate=0.03)
  base = sgd.descended(world.base, _gradients(world, world.base)[1])
  base = sgd.descended(base, _gradients(world, base)[0], rate=0.03)
  base = sgd.descended(base, _gradients(world, base)[1])
  chex.assert_trees_all_close(after, base, atol=2e-6)
  assert ["rl/loss" in metrics for metrics in seen] == [True, False, True]


def test_alternating_keeps_an_optimiser_state_for_each(world):
  """Adam's moments of SFT do not see RL's gradients."""
  adam = optax.adam(0.05)
  after, _ = _run(world, "alternating", steps=4, adam=0.05)
  states = {"rl": adam.init(world.base), "sft": adam.init(world.base)}
  base = world.base
  for turn in ("rl", "sft", "rl", "sft"):
    gradient = _gradients(world, base)[("sft", "rl").index(turn)]
    update, states[turn] = adam.update(gradient, states[turn], base)
    base = optax.apply_updates(base, update)
  chex.assert_trees_all_close(after, base, atol=1e-5)


def test_the_rl_stage_starts_afresh_and_keeps_to_what_sft_made(world):
  adam = optax.adam(0.05)
  method = world.method("sft_then_rl", adam=0.05, kl_coef=0.1)
  assert method.needs.reference == "own"
  state, update, bases = world.start(method), jax.jit(method.update), []
  for step in range(7):
    batch = world.batch(method, step)
    state, *_ = update(state, batch)
    bases.append(state.base)
    reference = state.extra["reference"]
    chex.assert_trees_all_equal(reference, bases[min(step, 4)])
  assert batch.rl.ref_logprobs is not None
  rl_gradient = problem_lib.gradient(world.problem(kl_coef=0.1).lower)
  moments = adam.init(world.base)
  base = bases[4]  # five of the ten steps are of SFT
  for _ in range(2):
    gradient = rl_gradient(base, None, batch.rl).by_lower
    step, moments = adam.update(gradient, moments, base)
    base = optax.apply_updates(base, step)
  chex.assert_trees_all_close(bases[6], base, atol=1e-5)


def test_chords_schedule_rises_linearly_and_falls_by_a_cosine():
  options = chord.Options(
    peak=0.9, valley=0.1, warmup_updates=4, decay_updates=10
  )
  mu = chord.schedule(options, 100)
  rise = [0.9 * (i + 1) / 4 for i in range(4)]
  fall = [
    0.1 + 0.8 * (1 + np.cos(np.pi * min(i, 10) / 10)) / 2 for i in range(14)
  ]
  np.testing.assert_allclose([mu(i) for i in range(18)], rise + fall, 1e-6)


def test_the_meta_gradient_is_the_slope_of_what_one_step_earned(world):
  """mu moves against d L_RL(base') / d mu, here by central differences."""
  method = world.method("meta_gradient", rate=0.02)
  update = jax.jit(method.update)
  state, *_ = update(world.start(method), world.batch())
  _, metrics, _ = update(state, world.batch())
  sft, rl = _gradients(world, world.base)

  def loss(mu):
    """Of the next batch, off the policy that is tried: a plain surrogate."""
    mixed = jax.tree.map(lambda s, r: mu * s + (1 - mu) * r, sft, rl)
    base = sgd.descended(world.base, mixed)
    old = terms.token_logprobs(
      world.policy, state.base, None, world.rl, temperature=1.0, chunk=64
    )[0]
    batch = dataclasses.replace(world.rl, old_logprobs=old)
    return world.problem().lower(base, None, batch)[0]

  with jax.enable_x64(True):
    slope = (loss(0.5 + 1e-2) - loss(0.5 - 1e-2)) / 2e-2
  direction = optax.tree.sub(sft, rl)
  new_rl = _gradients(world, state.base)[1]
  size = sgd.RATE * optax.tree.norm(direction) * optax.tree.norm(new_rl)
  moved = float(metrics["mix/sft_weight"]) - 0.5
  np.testing.assert_allclose(moved, -0.02 * slope / size, rtol=2e-2)
  assert abs(moved) > 1e-4


def test_sasrs_gate_runs_from_sft_to_rl():
  last, warm = jnp.float32(2.0), jnp.float32(3.0)
  assert float(diagnostics.sft_share(last, 0.0 * warm)) == 1.0
  assert float(diagnostics.sft_share(last, 1e30 * warm)) < 1e-20
  np.testing.assert_allclose(diagnostics.sft_share(last, 2.0 * warm), 2 / 8)
  assert float(diagnostics.sft_share(*jnp.zeros((2, 1)))[0]) == 0.0


@pytest.mark.parametrize(("gamma", "kinds"), [(0.0, "SSSSSS"), (1e9, "SSRRRR")])
def test_sasr_warms_up_by_sft_and_then_asks_the_gate(world, gamma, kinds):
  method = world.method("sasr", kl_coef=0.1, warmup_steps=2, gamma=gamma)
  assert method.needs.reference == "own"
  state, update = world.start(method), jax.jit(method.update)
  seen, bases = "", []
  for step in range(len(kinds)):
    host = world.host(method, step=step, own=conftest.scalars(state))
    (batch,) = host.batches
    assert (batch.rl is None) != (batch.sft is None)
    seen += "S" if batch.rl is None else "R"
    state, *_ = update(state, batch)
    bases.append(state.base)
  assert seen == kinds
  chex.assert_trees_all_equal(state.extra["reference"], bases[1])


@pytest.mark.parametrize(("penalty", "alone"), [(0.0, "sft"), (1.0, "grpo")])
@pytest.mark.parametrize(
  ("weight", "clip"),
  [("probability", "weight"), ("trust_region", "objective")],
  ids=["dft_and_cispo", "trust_region_and_gspo"],
)
def test_bridge_takes_any_weight_of_tokens_and_any_rl_objective(
  world, penalty, alone, weight, clip
):
  """With GSPO's ratio below: at the ends each level is by itself."""
  world.rl = dataclasses.replace(
    world.rl, old_logprobs=np.full(world.rl.weights.shape, -2.0, np.float32)
  )
  losses = {
    "sft.token_weight": weight,
    "rl.ratio": "sequence",
    "rl.clip": clip,
  }

  def moved(name, **own):
    settings = conftest.settings_of(name, losses | own)
    method = learner.build_method(settings, world.policy)
    after, _ = sgd.run(method, world.start(method), world.batch(method))
    return after.base["table"]

  joint = moved("bridge", **{"method.bridge.penalty": penalty})
  delta = world.adapter["A"] @ world.adapter["B"]
  world.base = {"table": world.base["table"] + delta}
  merged = moved(alone)
  np.testing.assert_allclose(joint + delta, merged, atol=1e-5)
  assert np.abs(merged - world.base["table"]).max() > 1e-3
  objectives = {
    "sft": terms.sft_objective(
      world.policy, chunk=64, token_weight=token_weights.build(weight, 0.1)
    ),
    "grpo": world.rl_loss(ratio="sequence", clip=clip),
  }
  rows = {"sft": world.sft, "grpo": world.rl}[alone]
  slope = problem_lib.gradient(objectives[alone])(
    world.base, None, rows
  ).by_lower
  np.testing.assert_allclose(
    merged, sgd.descended(world.base, slope)["table"], atol=1e-6
  )


def test_dual_clip_cuts_unlikely_samples_of_negative_advantage(world):
  """Of tokens that were sampled at a tenth of their probability or less."""
  old = np.full(world.rl.weights.shape, -12.0, np.float32)
  batch = dataclasses.replace(world.rl, old_logprobs=old)
  found = {}
  for bound in (None, 3.0):
    numbers = policy_gradient.PolicyGradient(
      dual_clip=bound, importance_cap=None
    )
    objective = terms.rl_objective(
      world.policy, numbers=numbers, temperature=1.0, chunk=64
    )
    loss, aux = objective(world.base, world.adapter, batch)
    assert (np.asarray(aux["logprobs"]) - old > np.log(3.0)).all()
    found[bound] = float(loss)
  advantages, weights = (
    np.asarray(x) for x in (batch.advantages, batch.weights)
  )
  # Beyond both clips every token counts a constant: 1.2 A, or 3 A below 0.
  expected = np.where(advantages < 0, 3.0, 1.2) * advantages
  np.testing.assert_allclose(found[3.0], -(weights * expected).sum(), rtol=1e-5)
  assert found[None] > 10 * abs(found[3.0])
