"""google-tunix's trainer as a contestant of benchmarks/step.py.

See updates.py. Runs in an environment that has google-tunix, and needs nothing
else of this project. What is timed is its compiled train step alone, on a
batch that is on the device already.
"""

import functools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from tunix.rl import algo_core, common
from tunix.rl.grpo import grpo_learner
from tunix.sft import peft_trainer
from tunix.sft import utils as sft_utils

from benchmarks.peers import lines, tunix_models

_PAD = 0


def set_up(request: dict[str, Any]) -> tuple[lines.Handler, dict[str, Any]]:
  """Returns what runs an update, and who we are."""
  fields = json.loads(pathlib.Path(request["model"], "config.json").read_text())
  model = tunix_models.make(fields, request["dtype"])
  trainers: dict[str, Any] = {}
  run = functools.partial(_run, model, trainers, lines.count_compilations())
  return run, tunix_models.about(model)


def _step(model, method):
  trainer = peft_trainer.PeftTrainer(
    model,
    optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6)),
    peft_trainer.TrainingConfig(eval_every_n_steps=10**9, max_steps=10**9),
  )
  if method == "sft":
    trainer.with_gen_model_input_fn(_sft_input)
  else:
    settings = grpo_learner.GRPOConfig(
      num_generations=8, num_iterations=1, beta=0.0, epsilon=0.2
    )
    settings.temperature = 1.0
    trainer.with_loss_fn(
      lambda model, train_example: algo_core.grpo_loss_fn(
        model, train_example, settings, pad_id=_PAD, eos_id=1
      ),
      has_aux=True,
    ).with_gen_model_input_fn(lambda x: {"train_example": x})
  return trainer.jit_train_and_eval_step()[0]


def _run(model, trainers, compilations, request):
  method = request["method"]
  if method not in trainers:
    trainers.clear()
    trainers[method] = _step(model, method)
  batch = jax.device_put((_sft if method == "sft" else _grpo)(request))
  step = trainers[method]
  jax.block_until_ready(batch)
  started = time.perf_counter()
  jax.block_until_ready(step(batch))
  jax.block_until_ready(jax.tree.leaves(nnx.state(model, nnx.Param)))
  seconds = time.perf_counter() - started
  rows = len(request["prompts"])
  longest = (
    max(map(len, request["prompts"])),
    max(map(len, request["completions"])),
  )
  held = sum(map(len, (*request["prompts"], *request["completions"])))
  return {
    "seconds": seconds,
    "flops": None,
    "padded_share": 1 - held / (rows * _columns(request, longest)),
    "compilations": compilations(),
    "bytes": lines.planned_bytes(
      step.func.lower(*step.args, batch).compile().compiled
    )
    if request["seed"] == 0
    else None,
  }


def _columns(request, longest):
  if request["method"] == "sft":
    pairs = zip(request["prompts"], request["completions"], strict=True)
    return max(len(p) + len(c) for p, c in pairs)
  return sum(longest)


def _sft(request):
  pairs = [*zip(request["prompts"], request["completions"], strict=True)]
  columns = max(len(p) + len(c) for p, c in pairs)
  tokens, mask = np.zeros((2, len(pairs), columns), np.int32)
  for row, (prompt, solution) in enumerate(pairs):
    end = len(prompt) + len(solution)
    tokens[row, :end] = prompt + solution
    mask[row, len(prompt) : end] = 1
  return peft_trainer.TrainingInput(input_tokens=tokens, input_mask=mask)


def _sft_input(x):
  mask = x.input_tokens != _PAD
  return {
    "input_tokens": x.input_tokens,
    "input_mask": x.input_mask,
    "positions": sft_utils.build_positions_from_mask(mask),
    "attention_mask": sft_utils.make_causal_attn_mask(mask),
  }


def _grpo(request):
  """Prompts padded on the left, completions on the right, as it wants them."""
  prompts, completions = request["prompts"], request["completions"]
  left = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
  right = np.zeros((len(prompts), max(map(len, completions))), np.int32)
  mask = np.zeros(right.shape, np.int32)
  for row, (prompt, completion) in enumerate(
    zip(prompts, completions, strict=True)
  ):
    left[row, left.shape[1] - len(prompt) :] = prompt
    right[row, : len(completion)] = completion
    mask[row, : len(completion)] = 1
  return common.TrainExample(
    prompt_ids=left,
    prompt_mask=left != _PAD,
    completion_ids=right,
    completion_mask=mask,
    advantages=np.array(request["advantages"], np.float32),
    ref_per_token_logps=None,
    old_per_token_logps=None,
  )


if __name__ == "__main__":
  lines.serve(set_up)
