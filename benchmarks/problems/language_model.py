"""A random language model, rollouts and demonstrations, for measurements."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from bilevel_jax.bilevel.problem import Problem
from bilevel_jax.methods import terms
from bilevel_jax.models import lora, presets
from bilevel_jax.models import policy as policy_lib
from bilevel_jax.objectives import policy_gradient, weighting
from bilevel_jax.rollout import assemble, packing
from bilevel_jax.types import Policy, RLBatch, StepBatch, TokenBatch


class LanguageModel(NamedTuple):
  """A random language model with rollouts and demonstrations to train on."""

  policy: Policy
  base: Any
  adapter: Any
  batch: StepBatch

  def problem(self, surrogate: Literal["dice", "fixed_sample"]) -> Problem:
    return Problem(
      upper=terms.sft_objective(self.policy, chunk=1024),
      lower=terms.rl_objective(
        self.policy,
        numbers=policy_gradient.PolicyGradient(
          clip_low=0.2, clip_high=0.2, kl_coef=1e-3, importance_cap=None
        ),
        temperature=1.0,
        chunk=1024,
        surrogate=surrogate,
      ),
    )


def make(
  *, layers: int, width: int, rows: int, tokens: int, micro_batch: int
) -> LanguageModel:
  """Returns a Llama, `rows` rollouts and a fifth as many demonstrations.

  Args:
    layers: of the transformer.
    width: of the transformer; its heads have 32 dimensions.
    rows: completions; demonstrations have a fifth of their tokens.
    tokens: of each row, a quarter of them prompt.
    micro_batch: rows of a forward pass.
  """
  architecture = presets.Architecture(
    family="llama",
    vocab_size=1024,
    width=width,
    layers=layers,
    heads=max(1, width // 32),
    kv_heads=max(1, width // 64),
    head_dim=32,
    mlp_width=3 * width,
    max_positions=tokens,
  )
  policy = policy_lib.make(
    architecture,
    compute_dtype="float32",
    remat="everything",
    adapter=lora.Spec(
      rank=16,
      alpha=16.0,
      targets=("q", "k", "v", "o", "gate", "up", "down"),
    ),
  )
  rng = np.random.default_rng(0)

  def sampled(rows: int) -> TokenBatch:
    pair = lambda: np.split(
      rng.integers(0, 1024, tokens).astype(np.int32), [tokens // 4]
    )
    pairs = [tuple(pair()) for _ in range(rows)]
    return assemble.token_batch(pairs, weighting.token_mean, columns=tokens)

  how = packing.Packing(micro_batch_tokens=micro_batch * tokens)
  rl = sampled(rows)
  base = jax.jit(policy.init)(jax.random.key(0))
  adapter = jax.tree.map(
    lambda x: x + 0.01, jax.jit(policy.init_adapter)(jax.random.key(1))
  )
  old = jax.jit(
    lambda base, adapter, batch: terms.token_logprobs(
      policy, base, adapter, batch, temperature=1.0, chunk=1024
    )[0]
  )(base, adapter, rl)
  batch = RLBatch(
    **{field.name: getattr(rl, field.name) for field in dataclasses.fields(rl)},
    advantages=rng.normal(size=(rows, 1)).astype(np.float32) * (rl.weights > 0),
    rewards=rng.random(rows).astype(np.float32),
    baselines=np.full(rows, 0.5, np.float32),
    scored=np.ones(rows, np.float32),
    questions=np.zeros(rows, np.int32),
    correct=np.zeros(rows, np.float32),
    accuracy=np.zeros(rows, np.float32),
    sampler_logprobs=None,
    old_logprobs=old,
    ref_logprobs=old,
  )
  sft = sampled(max(1, rows // 5))
  sft = dataclasses.replace(sft, ids=np.arange(len(sft.tokens), dtype=np.int32))
  return LanguageModel(
    policy,
    base,
    adapter,
    StepBatch(rl=packing.pack(batch, how), sft=packing.pack(sft, how)),
  )
