"""Our own learner as a contestant of benchmarks/step.py: see updates.py."""

import functools
import time
from typing import Any

import jax
import numpy as np

from benchmarks.peers import lines
from bilevel_jax import config, types
from bilevel_jax.models import lora
from bilevel_jax.models import policy as policy_lib
from bilevel_jax.rollout import assemble, packing
from bilevel_jax.training import learner as learner_lib
from bilevel_jax.training import sharding, throughput
from bilevel_jax.weights import huggingface


def set_up(request: dict[str, Any]) -> tuple[lines.Handler, dict[str, Any]]:
  """Returns what runs an update, and who we are."""
  options = request["options"]
  architecture = huggingface.read_architecture(request["model"])
  c = config.default_config()
  c.model.preset = "qwen2.5-0.5b"  # not read: policy and data are made here
  c.data.questions.task = "arithmetic"
  c.model.compute_dtype = request["dtype"]
  c.model.attention = options.get("attention", "auto")
  c.model.remat = options.get("remat", "none")
  c.model.logprob_chunk = request["logprob_chunk"]
  c.training.micro_batch_tokens = request["micro_batch_tokens"]
  c.training.row_tokens = request["row_tokens"]
  c.training.packing = options.get("packing", "auto")
  c.logging.entropy = False  # the peer computes none
  c.rl.kl_coef = 0.0
  c.rl.weighting = "sequence_mean"
  c.rl.importance_cap = None
  c.adapter.rank = 16
  policy = policy_lib.make(
    architecture,
    adapter=lora.Spec(
      rank=c.adapter.rank,
      alpha=c.adapter.alpha,
      targets=tuple(c.adapter.targets),
    ),
    compute_dtype=request["dtype"],
    attention=c.model.attention,
    remat=c.model.remat,
  )
  mesh = sharding.make_mesh(1, len(jax.devices()), 1)

  @functools.lru_cache(maxsize=1)  # one method's state in memory at a time
  def ready(method: str):
    c.method.name = method
    settings = config.parse(c.to_dict())
    learner = learner_lib.build(settings, policy, mesh)
    base = jax.jit(policy.init)(jax.random.key(0))
    adapter = None
    if learner.method.needs.adapter:
      adapter = jax.jit(policy.init_adapter)(jax.random.key(1))
    return learner, {"state": learner.programs.init(base, adapter)}

  shapes = jax.eval_shape(policy.init, jax.random.key(0))
  run = functools.partial(_run, ready, mesh, lines.count_compilations())
  return functools.partial(run, architecture), {
    "name": f"bilevel_jax (jax {jax.__version__})",
    "device": jax.devices()[0].device_kind,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
  }


def _run(ready, mesh, compilations, architecture, request):
  learner, holder = ready(request["method"])
  host = _rows(request, learner)
  jax.block_until_ready(holder["state"])
  started = time.perf_counter()
  packed = jax.tree.map(
    lambda part: packing.pack(part, learner.packing),
    host,
    is_leaf=lambda x: isinstance(x, types.TokenBatch),
  )
  batch = sharding.place_batch(packed, mesh)
  holder["state"], _ = jax.block_until_ready(
    learner.programs.update(holder["state"], batch)
  )
  seconds = time.perf_counter() - started
  parts = [part for part in (packed.rl, packed.sft) if part is not None]
  taken = learner.method.needs.gradients
  lower = learner.programs.update.lower  # pyright: ignore[reportFunctionMemberAccess] -- jitted
  flops = 3 * sum(
    times * throughput.batch_flops(architecture, part)
    for part, times in ((packed.sft, taken.sft), (packed.rl, taken.rl))
    if part is not None
  )
  return {
    "seconds": seconds,
    "flops": flops,
    "padded_share": packing.padding_share(parts),
    "compilations": compilations(),
    "bytes": lines.planned_bytes(lower(holder["state"], batch).compile())
    if request["seed"] == 0
    else None,
  }


def _rows(request, learner) -> types.StepBatch:
  pair = lambda p, c: (np.array(p, np.int32), np.array(c, np.int32))
  rows = [
    pair(p, c)
    for p, c in zip(request["prompts"], request["completions"], strict=True)
  ]
  if request["method"] == "sft":
    batch = assemble.token_batch(rows, learner.sft_weighting)
    return types.StepBatch(rl=None, sft=batch)
  plain = assemble.token_batch(rows, learner.rl_weighting)
  advantages = np.array(request["advantages"], np.float32)[:, None]
  count = len(rows)
  rl = types.RLBatch(
    tokens=plain.tokens,
    positions=plain.positions,
    segment_ids=plain.segment_ids,
    weights=plain.weights,
    advantages=advantages * (plain.weights > 0),
    rewards=np.zeros(count, np.float32),
    baselines=np.zeros(count, np.float32),
    scored=np.ones(count, np.float32),
    questions=np.zeros(count, np.int32),
    correct=np.zeros(count, np.float32),
    accuracy=np.zeros(count, np.float32),
    sampler_logprobs=None,
    old_logprobs=None,
    ref_logprobs=None,
  )
  sft = None
  if request["method"] == "bridge":
    sft = assemble.token_batch(
      [pair(p, c) for p, c in request["demonstrations"]], learner.sft_weighting
    )
  rl = assemble.skip_idle(rl) if learner.skip_idle else rl
  return types.StepBatch(rl=rl, sft=sft)


if __name__ == "__main__":
  lines.serve(set_up)
