"""Losses and advantages of verl's core algorithms, on the same arrays.

verl's file of them is read as it is, with stand-ins for the parts of verl that
it imports but for torch, so that neither Ray nor a GPU is needed: `pip install
--no-deps verl`.
"""

import importlib.util
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.objectives import policy_gradient, weighting

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("float64")
QUESTIONS, SAMPLES, TOKENS = 4, 3, 8


def _masked_mean(x, mask):
  return (x * mask).sum() / mask.sum()


def _masked_whiten(x, mask):
  """As verl.utils.torch_functional has it."""
  mean = _masked_mean(x, mask)
  count = mask.sum()
  variance = _masked_mean((x - mean) ** 2, mask) * count / (count - 1)
  return (x - mean) * torch.rsqrt(variance + 1e-8)


@pytest.fixture(scope="module")
def verl():
  """verl.trainer.ppo.core_algos."""
  found = importlib.util.find_spec("verl")
  if found is None:
    pytest.skip("verl is not installed: pip install --no-deps verl")
  path = pathlib.Path(found.origin).parent / "trainer/ppo/core_algos.py"

  def stand_in(name, **members):
    module = types.ModuleType(name)
    vars(module).update(members)
    return module

  named = lambda name: type(name, (), {})
  functions = stand_in(
    "verl.utils.torch_functional",
    masked_sum=lambda x, mask: (x * mask).sum(),
    masked_mean=_masked_mean,
    masked_whiten=_masked_whiten,
  )
  modules = {
    "omegaconf": stand_in("omegaconf", DictConfig=dict),
    "verl": stand_in("verl"),
    "verl.utils": stand_in(
      "verl.utils",
      torch_functional=functions,
      as_torch_index=None,
      group_mean_std=None,
    ),
    "verl.utils.torch_functional": functions,
    "verl.utils.import_utils": stand_in(
      "verl.utils.import_utils", deprecated=lambda name: lambda f: f
    ),
    "verl.trainer.config": stand_in(
      "verl.trainer.config", AlgoConfig=named("AlgoConfig")
    ),
    "verl.workers.config": stand_in("verl.workers.config", ActorConfig=_Actor),
  }
  before = {name: sys.modules.get(name) for name in modules}
  sys.modules.update(modules)
  try:
    spec = importlib.util.spec_from_file_location("core_algos", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
  finally:
    for name, module_before in before.items():
      if module_before is None:
        del sys.modules[name]
      else:
        sys.modules[name] = module_before
  return module


class _Actor(types.SimpleNamespace):
  """The settings of an actor."""

  global_batch_info = {}  # noqa: RUF012

  def get(self, name, default):
    return getattr(self, name, default)


@pytest.fixture
def arrays():
  rng = np.random.default_rng(1)
  shape = QUESTIONS * SAMPLES, TOKENS
  logprobs = -rng.exponential(size=shape)
  lengths = rng.integers(1, TOKENS + 1, len(logprobs))
  return {
    "logprobs": logprobs,
    "old": logprobs + rng.normal(scale=0.5, size=shape),
    "ref": logprobs + rng.normal(scale=2.0, size=shape),
    "advantages": np.repeat(rng.normal(size=(len(logprobs), 1)), TOKENS, 1),
    "mask": (np.arange(TOKENS) < lengths[:, None]).astype(float),
  }


AGGREGATES = {
  "token-mean": weighting.token_mean,
  "seq-mean-token-mean": weighting.sequence_mean,
  "seq-mean-token-sum-norm": weighting.constant(TOKENS),
}
POLICY_LOSSES = {
  "vanilla": (
    policy_gradient.clipped_surrogate,
    {"dual_clip": 1.6, "log_ratio_bound": 20.0},
    False,
  ),
  "gspo": (
    policy_gradient.clipped_surrogate,
    {"log_ratio_bound": 10.0},
    True,
  ),
  "cispo": (policy_gradient.clipped_weight, {"log_ratio_bound": 20.0}, False),
}


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_policy_losses_and_their_gradients(verl, arrays, name, aggregate):
  loss, numbers, of_sequences = POLICY_LOSSES[name]
  arrays["old"][0, 0] = arrays["logprobs"][0, 0] - 25.0  # beyond any bound
  arrays["mask"][0, 0] = 1.0
  at = {key: torch.tensor(x) for key, x in arrays.items()}
  logprobs = at["logprobs"].requires_grad_()
  theirs, _ = verl.get_policy_loss_fn(name)(
    old_log_prob=at["old"],
    log_prob=logprobs,
    advantages=at["advantages"],
    response_mask=at["mask"],
    loss_agg_mode=aggregate,
    config=_Actor(
      clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.3, clip_ratio_c=1.6
    ),
  )
  theirs.backward()
  bounds = policy_gradient.PolicyGradient(
    clip_low=0.2, clip_high=0.3, **numbers
  )
  weights = AGGREGATES[aggregate](arrays["mask"])

  def ours(x):
    losses, _ = loss(
      x,
      arrays["old"],
      arrays["advantages"],
      bounds,
      sequences=arrays["mask"] > 0 if of_sequences else None,
    )
    return jnp.sum(weights * losses)

  value, gradient = jax.value_and_grad(ours)(jnp.asarray(arrays["logprobs"]))
  np.testing.assert_allclose(value, theirs.item(), rtol=1e-7)
  np.testing.assert_allclose(gradient, logprobs.grad, rtol=1e-7, atol=1e-12)


def test_the_kl_estimates_and_their_bound(verl, arrays):
  arrays["ref"][0, 0] = arrays["logprobs"][0, 0] + 3.0  # k3 is 16, above 10
  at = {key: torch.tensor(x) for key, x in arrays.items()}
  for name, ours in (
    ("k1", jnp.subtract),
    ("k2", policy_gradient.kl_k2),
    ("k3", policy_gradient.kl_k3),
  ):
    theirs = verl.kl_penalty_forward(at["logprobs"], at["ref"], name)
    found = ours(arrays["logprobs"], arrays["ref"])
    if name == "k3":
      assert found.max() > 10
      found = jnp.clip(found, -10, 10)
    np.testing.assert_allclose(found, theirs, rtol=1e-9)


ADVANTAGES = {
  "group_std": ("compute_grpo_outcome_advantage", {}),
  "group_mean": (
    "compute_grpo_outcome_advantage",
    {"norm_adv_by_std_in_grpo": False},
  ),
  "leave_one_out": ("compute_rloo_outcome_advantage", {}),
  "batch_std_by_token": ("compute_reinforce_plus_plus_outcome_advantage", {}),
}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages(verl, arrays, name):
  function, how = ADVANTAGES[name]
  rng = np.random.default_rng(2)
  rewards = rng.integers(0, 2, (QUESTIONS, SAMPLES)).astype(float)
  rewards[:, 0] = 1 - rewards[:, 1]  # no group without a difference
  lengths = arrays["mask"].sum(axis=1).astype(int)
  by_token = np.zeros_like(arrays["mask"])
  by_token[np.arange(len(lengths)), lengths - 1] = rewards.ravel()
  questions = np.repeat(np.arange(QUESTIONS), SAMPLES)
  if "reinforce" in function:
    how = {"config": types.SimpleNamespace(gamma=1.0)}
  else:
    how = {"index": questions} | how
  theirs, _ = getattr(verl, function)(
    token_level_rewards=torch.tensor(by_token),
    response_mask=torch.tensor(arrays["mask"]),
    **how,
  )
  ours, _ = policy_gradient.group_advantages(
    rewards,
    np.ones(rewards.shape, bool),
    lengths.reshape(rewards.shape),
    normalise=name,
  )
  np.testing.assert_allclose(
    ours.reshape(-1, 1) * arrays["mask"], theirs, rtol=1e-4, atol=1e-6
  )
