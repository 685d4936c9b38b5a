"""Our own engine as a contestant of benchmarks/rollout.py: see lines.py."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import lines
from bilevel_jax import types
from bilevel_jax.models import attention, layers, presets
from bilevel_jax.models import policy as policy_lib
from bilevel_jax.rollout import engine
from bilevel_jax.weights import huggingface


def set_up(request: dict[str, Any]) -> tuple[lines.Handler, dict[str, Any]]:
  """Returns what runs a workload, and who we are."""
  architecture = huggingface.read_architecture(request["model"])
  policy = policy_lib.make(architecture, compute_dtype=request["dtype"])
  if request["options"].get("layers") == "scanned":
    policy = scanned(policy, architecture)
  if request["random"]:
    base = jax.jit(policy.init)(jax.random.key(0))
  else:
    base = huggingface.load_base(request["model"], architecture)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(base))
  weights = jax.jit(policy.merge)(base, None)
  del base
  # A policy has programs of its own, so there must be one for each use.
  chosen = functools.cache(
    lambda prompt_tokens: (
      policy if prompt_tokens is None else forced(policy, prompt_tokens)
    )
  )
  jax.block_until_ready(weights)
  run = functools.partial(_run, chosen, weights, lines.count_compilations())
  return run, {
    "name": f"bilevel_jax (jax {jax.__version__})",
    "device": jax.devices()[0].device_kind,
    "parameters": parameters,
  }


def _run(chosen, weights, compilations, request):
  segments: list[engine.Segment] = []
  prompts = [np.array(prompt, np.int32) for prompt in request["prompts"]]
  free = request["lengths"] is None
  started = time.perf_counter()
  rollout = engine.generate(
    chosen(None if free else len(prompts[0])),
    weights,
    types.Requests(
      prompts=prompts,
      prompt_ids=np.arange(len(prompts), dtype=np.uint32),
      samples_per_prompt=1,
      max_new_tokens=request["budget"],
      eos_ids=tuple(request["eos_ids"]),
      sampling=types.Sampling(temperature=request["temperature"]),
      key=jax.random.key(request["seed"]),
    ),
    watch=segments.append,
  )
  seconds = time.perf_counter() - started
  rows = zip(rollout.tokens, rollout.lengths, strict=True)
  return {
    "seconds": seconds,
    "slots": sum(s.rows * s.steps for s in segments),
    "lengths": rollout.lengths.tolist(),
    "tokens": [tokens[:length].tolist() for tokens, length in rows],
    "cache_bytes": max(s.cache_bytes for s in segments),
    "compilations": compilations(),
  }


def forced(policy: types.Policy, prompt_tokens: int) -> types.Policy:
  """Returns a policy that ends each row where the row's prompt says.

  Its cache also holds the tokens, so that a row's second one, the length of
  its completion, is at hand wherever the engine moves the row. Token 0, the
  EOS, is certain as the last token and impossible before. The engine finds
  out when it is sampled, as in life.

  Args:
    policy: any.
    prompt_tokens: of every prompt.
  """

  def init_cache(rows, columns):
    tokens = jnp.zeros((rows, columns), jnp.int32)
    return policy.init_cache(rows, columns), tokens

  def extend(weights, cache, tokens, positions, start, first):
    inner, seen = cache
    hidden, inner = policy.extend(
      weights, inner, tokens, positions, start, first
    )
    seen = jax.lax.dynamic_update_slice(seen, tokens, (0, start))
    second = jnp.minimum(first + 1, seen.shape[1] - 1)
    length = jnp.take_along_axis(seen, second[:, None], 1)
    # The prompt's last token, in position prompt_tokens - 1, draws the first.
    ends = positions == length + (prompt_tokens - 2)
    ends = ends[..., None].astype(hidden.dtype)
    return jnp.concatenate([hidden, ends], -1), (inner, seen)

  def logits(weights, hidden):
    scores = policy.logits(weights, hidden[..., :-1])
    certain = jnp.where(hidden[..., -1:] > 0, 1e9, -1e9)
    return jnp.where(jnp.arange(scores.shape[-1]) == 0, certain, scores)

  return policy._replace(init_cache=init_cache, extend=extend, logits=logits)


def scanned(
  policy: types.Policy, architecture: presets.Architecture
) -> types.Policy:
  """Returns a policy that decodes in a scan over layers, for comparison.

  The cache is one array for all layers, in the scan's carry.

  Args:
    policy: of the architecture.
    architecture: sizes and switches.
  """
  a = architecture
  block, norm = layers.Block(a), layers.RMSNorm(a.norm_eps)

  def merge(base, adapter):
    weights = policy.merge(base, adapter)
    stack = lambda *xs: jnp.stack(xs)
    return {**weights, "layers": jax.tree.map(stack, *weights["layers"])}

  def init_cache(rows, columns):
    pair = jax.eval_shape(lambda: policy.init_cache(rows, columns))[0]
    return tuple(
      jnp.zeros((rows, a.layers, *one.shape[1:]), one.dtype) for one in pair
    )

  def extend(weights, cache, tokens, positions, start, first):
    rotation = layers.rotation(positions, a)
    columns = jnp.arange(cache[0].shape[-1])[None, None]
    queries = (start + jnp.arange(tokens.shape[1]))[None, :, None]
    visible = (columns >= first[:, None, None]) & (columns <= queries)

    def layer(carry, inputs):
      (x, cache), (parameters, i) = carry, inputs

      def write(whole, new, *at):
        new = new[:, None].astype(whole.dtype)
        return jax.lax.dynamic_update_slice(whole, new, (0, i, *at))

      def attend(q, k, v):
        longer = (
          write(cache[0], k.transpose(0, 2, 3, 1), 0, 0, start),
          write(cache[1], v.transpose(0, 2, 1, 3), 0, start, 0),
        )
        read = lambda whole: jax.lax.dynamic_index_in_dim(whole, i, 1, False)
        return attention.dense(q, *map(read, longer), visible), longer

      return block.apply({"params": parameters}, x, rotation, attend), None

    x = weights["embedding"][tokens]
    (x, cache), _ = jax.lax.scan(
      layer, (x, cache), (weights["layers"], jnp.arange(a.layers))
    )
    return norm.apply({"params": weights["final_norm"]}, x), cache

  return policy._replace(merge=merge, init_cache=init_cache, extend=extend)


if __name__ == "__main__":
  lines.serve(set_up)
