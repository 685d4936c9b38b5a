"""Losses and gradients of TRL's trainers, on the same arrays."""

import collections
import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import types
from bilevel_jax.methods import terms
from bilevel_jax.objectives import policy_gradient, token_weights, weighting

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
sft_trainer = pytest.importorskip("trl.trainer.sft_trainer")

pytestmark = pytest.mark.usefixtures("float64")
ROWS, TOKENS, LONGEST = 6, 9, 12
CAP = 1.5


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  logprobs = -rng.exponential(size=(ROWS, TOKENS))
  lengths = rng.integers(1, TOKENS + 1, ROWS)
  near = lambda: logprobs + rng.normal(scale=0.3, size=logprobs.shape)
  return {
    "logprobs": logprobs,
    "old": near(),
    "ref": near(),
    "sampler": near(),
    "advantages": rng.normal(size=ROWS),
    "mask": (np.arange(TOKENS) < lengths[:, None]).astype(float),
  }


def _by_trl(arrays, **own):
  """The loss and its gradient by the log-probs."""
  at = {name: torch.tensor(x) for name, x in arrays.items()}
  logprobs = at["logprobs"].requires_grad_()
  trainer = mock.MagicMock(
    **{
      "loss_type": "grpo",
      "importance_sampling_level": "token",
      "epsilon_low": 0.2,
      "epsilon_high": 0.2,
      "beta": 0.0,
      "args.delta": None,
      "args.use_bias_correction_kl": False,
      "args.steps_per_generation": 1,
      "use_vllm": False,
      "top_entropy_quantile": 1.0,
      "off_policy_mask_threshold": None,
      "current_gradient_accumulation_steps": 1,
      "max_completion_length": LONGEST,
      "accelerator.num_processes": 1,
      "_entropy_bonus_enabled": False,
      "aux_loss_enabled": False,
      "_metrics": collections.defaultdict(
        lambda: collections.defaultdict(list)
      ),
    }
    | own
  )
  trainer.model.training = True
  trainer.accelerator.reduce.side_effect = lambda x, **_: x
  trainer.accelerator.gather.side_effect = lambda x: x
  trainer._get_per_token_logps_and_entropies.return_value = (
    logprobs,
    torch.zeros_like(logprobs),
    None,
  )
  prompts = torch.ones((ROWS, 1), dtype=torch.long)
  ratio = torch.exp(at["old"] - at["sampler"])
  loss = grpo_trainer.GRPOTrainer._compute_loss(
    trainer,
    None,
    {
      "prompt_ids": prompts,
      "prompt_mask": prompts,
      "completion_ids": torch.ones((ROWS, TOKENS), dtype=torch.long),
      "completion_mask": at["mask"],
      "advantages": at["advantages"],
      "old_per_token_logps": at["old"],
      "ref_per_token_logps": at["ref"],
      "importance_sampling_ratio": torch.clamp(ratio, max=CAP),
      "num_items_in_batch": at["mask"].sum(),
    },
  )
  loss.backward()
  return loss.item(), logprobs.grad.numpy()


def _by_us(monkeypatch, arrays, weigh, *, sampler=False, **settings):
  """The same by `terms.rl_objective`, whose base here are the log-probs."""
  monkeypatch.setattr(
    terms,
    "token_logprobs",
    lambda policy, base, adapter, batch, **how: (base, jnp.zeros_like(base)),
  )
  numbers = {"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0}
  form = {n: settings.pop(n) for n in ("ratio", "clip") if n in settings}
  numbers |= {"importance_cap": CAP if sampler else None} | settings
  objective = terms.rl_objective(
    None,
    numbers=policy_gradient.PolicyGradient(**numbers),
    temperature=1.0,
    chunk=1,
    **form,
  )
  weights = weigh(arrays["mask"])
  batch = types.RLBatch(
    **dict.fromkeys((f.name for f in dataclasses.fields(types.RLBatch)), None)
    | {
      "weights": weights,
      "advantages": arrays["advantages"][:, None] * (weights > 0),
      "old_logprobs": arrays["old"],
      "ref_logprobs": arrays["ref"] if numbers["kl_coef"] else None,
      "sampler_logprobs": arrays["sampler"],
      "sampled_by_another": False,
    }
  )
  loss, gradient = jax.value_and_grad(
    lambda logprobs: objective(logprobs, None, batch)[0]
  )(jnp.asarray(arrays["logprobs"]))
  return loss, gradient


DR_GRPO = weighting.constant(LONGEST)
SEQUENCES, TOKEN = weighting.sequence_mean, weighting.token_mean
CASES = {
  "grpo": ({}, SEQUENCES, {}),
  "grpo with a KL": ({"beta": 0.1}, SEQUENCES, {"kl_coef": 0.1}),
  "dapo": (
    {"loss_type": "dapo", "epsilon_high": 0.28},
    TOKEN,
    {"clip_high": 0.28},
  ),
  "bnpo": ({"loss_type": "bnpo"}, TOKEN, {}),
  "dr_grpo": ({"loss_type": "dr_grpo"}, DR_GRPO, {}),
  "gspo": (
    {
      "importance_sampling_level": "sequence",
      "epsilon_low": 0.03,
      "epsilon_high": 0.04,
    },
    SEQUENCES,
    {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04},
  ),
  "cispo": (
    {"loss_type": "cispo", "epsilon_high": 1.1},
    TOKEN,
    {"clip": "weight", "clip_low": 1.0, "clip_high": 0.1},
  ),
  "dual clip": ({"args.delta": 1.3}, SEQUENCES, {"dual_clip": 1.3}),
  "sampler and learner": (
    {
      "use_vllm": True,
      "vllm_importance_sampling_correction": True,
      "beta": 0.1,
    },
    SEQUENCES,
    {"sampler": True, "kl_coef": 0.1},
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_and_its_gradient_are_those_of_trl(monkeypatch, arrays, name):
  theirs, weigh, ours = CASES[name]
  loss, gradient = _by_trl(arrays, **theirs)
  own_loss, own_gradient = _by_us(monkeypatch, arrays, weigh, **ours)
  np.testing.assert_allclose(own_loss, loss, rtol=1e-10)
  np.testing.assert_allclose(own_gradient, gradient, rtol=1e-9, atol=1e-14)
  counted = gradient[arrays["mask"] > 0]
  assert np.count_nonzero(counted) > len(counted) / 4
  if name not in ("cispo", "sampler and learner") and not theirs.get("beta"):
    assert np.count_nonzero(counted) < len(counted)  # some were clipped


@pytest.mark.parametrize("kind", ["nll", "dft"])
def test_the_loss_of_demonstrations_is_that_of_trl(monkeypatch, arrays, kind):
  mask = torch.tensor(arrays["mask"])
  logprobs = torch.tensor(arrays["logprobs"]).requires_grad_()
  outputs = mock.MagicMock(
    log_probs=logprobs * mask,
    label_mask=mask > 0,
    entropy=torch.zeros_like(mask),
    is_top1=mask > 0,
  )
  trainer = mock.MagicMock(
    **{
      "aux_loss_enabled": False,
      "compute_loss_func": None,
      "label_smoother": None,
      "args.loss_type": kind,
      "args.average_tokens_across_devices": False,
      "accelerator.parallelism_config": None,
      "_total_train_tokens": 0,
      "_tp_size": 1,
      "_metrics": collections.defaultdict(
        lambda: collections.defaultdict(list)
      ),
    }
  )
  trainer.accelerator.gather_for_metrics.side_effect = lambda x: x
  loss = sft_trainer.SFTTrainer.compute_loss(
    trainer, lambda **_: outputs, {"labels": mask, "attention_mask": mask}
  )
  loss.backward()
  monkeypatch.setattr(
    terms,
    "token_logprobs",
    lambda policy, base, adapter, batch, **how: (base, None),
  )
  weight = {"nll": token_weights.one, "dft": token_weights.by_probability}
  objective = terms.sft_objective(None, chunk=1, token_weight=weight[kind])
  batch = types.TokenBatch(
    tokens=None,
    positions=None,
    segment_ids=None,
    weights=weighting.token_mean(arrays["mask"]),
  )
  own_loss, gradient = jax.value_and_grad(
    lambda base: objective(base, None, batch)[0]
  )(jnp.asarray(arrays["logprobs"]))
  np.testing.assert_allclose(own_loss, loss.item(), rtol=1e-10)
  np.testing.assert_allclose(gradient, logprobs.grad, rtol=1e-10, atol=1e-14)
