"""transformers' generate as a contestant of benchmarks/rollout.py.

See lines.py. Runs in any environment with torch and transformers.
"""

import functools
import time
from typing import Any

import torch
import transformers

from benchmarks.peers import lines


def set_up(request: dict[str, Any]) -> tuple[lines.Handler, dict[str, Any]]:
  """Returns what runs a workload, and who we are."""
  device = "cuda" if torch.cuda.is_available() else "cpu"
  dtype = getattr(torch, request["dtype"])
  torch.manual_seed(0)
  with torch.device(device):
    if request["random"]:
      config = transformers.AutoConfig.from_pretrained(request["model"])
      model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
      model = transformers.AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=dtype
      )
  model = model.to(device).eval()
  versions = f"{transformers.__version__} (torch {torch.__version__})"
  return functools.partial(_run, model, device), {
    "name": f"transformers {versions}",
    "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    "parameters": sum(p.numel() for p in model.parameters()),
  }


def _run(model, device, request):
  torch.manual_seed(request["seed"])
  prompts, lengths = request["prompts"], request["lengths"]
  size, slots, cache_bytes, rows = request["batch"], 0, 0, []
  started = time.perf_counter()
  for start in range(0, len(prompts), size):
    batch = slice(start, start + size)
    # Forced lengths: no EOS, and a batch takes as many steps as its longest.
    forced = lengths is not None
    budget = max(lengths[batch]) if forced else request["budget"]
    out, held = _generate(
      model,
      device,
      prompts[batch],
      max_new_tokens=budget,
      eos_token_id=None if forced else request["eos_ids"],
      pad_token_id=0,
      do_sample=request["temperature"] > 0,
      temperature=request["temperature"] or None,
      top_k=0,
      top_p=1.0,
    )
    slots += len(out) * len(out[0])
    cache_bytes = max(cache_bytes, held)
    for row, tokens in enumerate(out, start):
      rows.append(_kept(tokens, lengths and lengths[row], request["eos_ids"]))
  return {
    "seconds": time.perf_counter() - started,
    "slots": slots,
    "lengths": [len(row) for row in rows],
    "tokens": rows,
    "cache_bytes": cache_bytes,
    "compilations": 0,
  }


@torch.inference_mode()
def _generate(model, device, prompts, **settings):
  """Returns the new tokens of a left-padded batch, and its cache's bytes."""
  longest = max(map(len, prompts))
  tokens = [[0] * (longest - len(p)) + p for p in prompts]
  mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
  done = model.generate(
    torch.tensor(tokens, device=device),
    attention_mask=torch.tensor(mask, device=device),
    return_dict_in_generate=True,
    **settings,
  )
  held = sum(
    layer.keys.nbytes + layer.values.nbytes
    for layer in done.past_key_values.layers
  )
  return done.sequences[:, longest:].tolist(), held


def _kept(tokens, length, eos_ids):
  if length is not None:
    return tokens[:length]
  ends = [i for i, token in enumerate(tokens) if token in eos_ids]
  return tokens[: ends[0] + 1] if ends else tokens


if __name__ == "__main__":
  lines.serve(set_up)
