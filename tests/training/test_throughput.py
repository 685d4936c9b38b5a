"""Model FLOPs against the compiler's count, and what is logged of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import types
from bilevel_jax.models import presets
from bilevel_jax.objectives import weighting
from bilevel_jax.rollout import assemble, packing
from bilevel_jax.training import throughput
from tests import tiny_run

# One layer: the compiler counts the body of a loop once.
ARCHITECTURE = presets.Architecture(
  family="llama",
  vocab_size=512,
  width=128,
  layers=1,
  heads=4,
  kv_heads=2,
  head_dim=32,
  mlp_width=256,
  max_positions=64,
)


def test_a_forward_pass_costs_what_the_compiler_counts():
  policy = tiny_run.make_policy(ARCHITECTURE)
  rows, columns = 4, 64
  base = jax.eval_shape(policy.init, jax.random.key(0))
  ids = jax.ShapeDtypeStruct((rows, columns), jnp.int32)

  def forward(base, tokens, positions, segment_ids):
    hidden = policy.hidden(base, None, tokens, positions, segment_ids)
    return hidden @ policy.unembedding(base)

  counted = jax.jit(forward).lower(base, ids, ids, ids).cost_analysis()
  flops = throughput.forward_flops(
    ARCHITECTURE,
    tokens=rows * columns,
    context=rows * columns * columns,  # this kernel computes what it masks
    logits=rows * columns,
  )
  assert flops == pytest.approx(counted["flops"], rel=0.05)
  assert flops < counted["flops"]  # it counts the elementwise ones, too


def test_a_batch_costs_its_tokens_and_not_its_padding():
  prompt = np.arange(5, dtype=np.int32)
  pairs = [(prompt, np.ones(n, np.int32)) for n in (4, 9)]
  batch = assemble.token_batch(pairs, weighting.token_mean)
  alone = packing.pack(batch, packing.Packing(several=False))
  # All tokens but each answer's last; token t attends to t + 1.
  sums = lambda n: n * (n + 1) // 2
  assert throughput.batch_flops(ARCHITECTURE, alone) == (
    throughput.forward_flops(
      ARCHITECTURE, tokens=8 + 13, context=sums(8) + sums(13), logits=13
    )
  )
  shared = packing.pack(batch, packing.Packing())
  assert throughput.batch_flops(ARCHITECTURE, shared) == (
    throughput.forward_flops(
      ARCHITECTURE,
      tokens=8 + 13 - 5,
      context=sums(8) + sums(13) - sums(5),
      logits=13,
    )
  )


def test_sampling_reads_a_prompt_once_and_the_last_token_never():
  rollout = types.Rollout(
    requests=types.Requests(
      prompts=[np.zeros(3, np.int32)],
      prompt_ids=np.zeros(1, np.uint32),
      samples_per_prompt=2,
      max_new_tokens=4,
      eos_ids=(0,),
      sampling=types.Sampling(),
      key=jax.random.key(0),
    ),
    tokens=np.zeros((2, 4), np.int32),
    lengths=np.array([1, 4], np.int32),
    logprobs=np.zeros((2, 4), np.float32),
    finish_reasons=np.zeros(2, np.int8),
  )
  contexts = [1, 2, 3, 4, 5, 6]  # the prompt, then three of four tokens
  assert throughput.rollout_flops(ARCHITECTURE, rollout) == (
    throughput.forward_flops(
      ARCHITECTURE, tokens=6, context=sum(contexts), logits=5
    )
  )


@dataclasses.dataclass
class _Device:
  device_kind: str


def test_the_share_of_the_peak_is_of_all_devices():
  logged = throughput.phase(
    "update",
    2.0,
    tokens=100,
    flops=989e12,
    devices=[_Device("NVIDIA H200"), _Device("NVIDIA H200")],
  )
  assert logged == {"time/update_tokens_per_s": 50.0, "time/update_mfu": 0.25}
  unknown = throughput.phase(
    "update", 2.0, tokens=100, flops=1.0, devices=[_Device("cpu")]
  )
  assert list(unknown) == ["time/update_tokens_per_s"]
