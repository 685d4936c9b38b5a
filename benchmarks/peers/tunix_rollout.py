"""google-tunix's sampler as a contestant of benchmarks/rollout.py.

See lines.py. Runs in an environment that has google-tunix, and needs nothing
else of this project.
"""

import functools
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.generate import sampler as sampler_lib

from benchmarks.peers import lines, tunix_models


def set_up(request: dict[str, Any]) -> tuple[lines.Handler, dict[str, Any]]:
  """Returns what runs a workload, and who we are."""
  if not request["random"]:
    raise SystemExit("tunix is compared on random weights only")
  fields = json.loads(pathlib.Path(request["model"], "config.json").read_text())
  model = tunix_models.make(fields, request["dtype"], _forced)
  run = functools.partial(_run, model, fields, lines.count_compilations())
  return run, tunix_models.about(model)


def _forced(model_class):
  """A model that says EOS, id 0, in a row's position `stops`, never before."""

  class Forced(model_class):
    def __init__(self, config, *, rngs):
      super().__init__(config, rngs=rngs)
      # The sampler takes its dtype from the first variable in the alphabet.
      self.stops = nnx.Variable(jnp.zeros((1,), jnp.int32))

    @functools.wraps(model_class.__call__)
    def __call__(self, input_tokens, positions, cache, attention_mask, **rest):
      logits, cache = super().__call__(
        input_tokens, positions, cache, attention_mask, **rest
      )
      ends = positions[:, -logits.shape[1] :] == self.stops[...][:, None]
      certain = jnp.where(ends[..., None], 1e9, -1e9).astype(logits.dtype)
      eos = jnp.arange(logits.shape[-1]) == 0
      return jnp.where(eos, certain, logits), cache

  return Forced


class _Numbers:
  """A tokenizer of texts that are token ids already."""

  def __init__(self, vocab_size: int):
    self._vocab_size = vocab_size

  def encode(self, text: str, **_: Any) -> list[int]:
    return [int(word) for word in text.split()]

  def decode(self, ids: Any, **_: Any) -> str:
    return " ".join(str(int(i)) for i in ids)

  def bos_id(self) -> int:
    return 0  # none

  def eos_id(self) -> int:
    return 0

  def pad_id(self) -> int:
    return self._vocab_size - 1  # in no prompt


@functools.lru_cache(maxsize=1)
def _sampler(model, batch, columns, layers, kv_heads, head_dim, vocab_size):
  model.stops = nnx.Variable(jnp.zeros((batch,), jnp.int32))
  return sampler_lib.Sampler(
    model,
    _Numbers(vocab_size),
    sampler_lib.CacheConfig(
      cache_size=columns,
      num_layers=layers,
      num_kv_heads=kv_heads,
      head_dim=head_dim,
    ),
  )


def _run(model, fields, compilations, request):
  prompts, lengths, size = (
    request[name] for name in ("prompts", "lengths", "batch")
  )
  prompt_tokens, columns = len(prompts[0]), len(prompts[0]) + request["budget"]
  heads = fields["num_key_value_heads"], fields["head_dim"]
  sampler = _sampler(
    model,
    size,
    columns,
    fields["num_hidden_layers"],
    *heads,
    fields["vocab_size"],
  )
  slots, rows, seconds = 0, [], 0.0
  for number, start in enumerate(range(0, len(prompts), size)):
    batch = slice(start, start + size)
    texts = [" ".join(map(str, prompt)) for prompt in prompts[batch]]
    model.stops[...] = jnp.array(lengths[batch]) + (prompt_tokens - 2)
    sampler.transformer_state = nnx.variables(model)
    started = time.perf_counter()
    output = sampler(
      texts,
      max_generation_steps=request["budget"],
      max_prompt_length=prompt_tokens,
      eos_tokens=request["eos_ids"],
      return_logprobs=True,
      temperature=request["temperature"],
      top_p=1.0,
      seed=1000 * request["seed"] + number,
    )
    jax.block_until_ready(output.tokens)
    seconds += time.perf_counter() - started
    # It leaves the EOS out of what it returns.
    rows += [[*np.asarray(tokens).tolist(), 0] for tokens in output.tokens]
    slots += size * max(lengths[batch])
  itemsize = jnp.dtype(sampler.dtype).itemsize
  per_column = 2 * fields["num_hidden_layers"] * heads[0] * heads[1] * itemsize
  return {
    "seconds": seconds,
    "slots": slots,
    "lengths": [len(row) for row in rows],
    "tokens": rows,
    "cache_bytes": size * columns * per_column,
    "compilations": compilations(),
  }


if __name__ == "__main__":
  lines.serve(set_up)
