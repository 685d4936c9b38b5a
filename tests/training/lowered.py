"""Compiles updates for fake devices; prints a JSON line for each.

python -m tests.training.lowered DEVICES CASE...
"""

import dataclasses
import json
import sys

import jax

from bilevel_jax import config
from bilevel_jax.models import presets
from bilevel_jax.training import compiled_update, memory_plan, meshes, sharding

# Layers are scanned: two compile as many do, and as the many's programs.
CASES = {
  "3b_bridge": ("qwen2.5-3b", {"layers": 2}, "bridge", (1, 8, 1)),
  "3b": ("qwen2.5-3b", {"layers": 2}, "grpo", (1, 8, 1)),
  "3b_tensor": ("qwen2.5-3b", {"layers": 2}, "grpo", (2, 2, 2)),
  "8b": ("qwen3-8b", {"layers": 2}, "grpo", (1, 64, 1)),
  "middling": (
    "qwen2.5-0.5b",
    {"layers": 6, "vocab_size": 16384},
    "bridge",
    (1, 1, 1),
  ),
}


def settings(method: str, rows: int) -> config.Config:
  """Returns settings of a run with so many rows in a forward pass."""
  c = config.default_config()
  c.model.preset = "tiny-llama"  # the architecture is given apart
  c.model.attention = "chunked"
  c.data.questions.task = "arithmetic"
  c.data.max_prompt_tokens = 128
  c.data.max_demonstration_tokens = 512
  c.data.prompts_per_step = rows // 2
  c.data.demonstrations_per_step = 2 * rows
  c.rollout.max_new_tokens = 384
  c.training.micro_batch_tokens = 512 * rows
  c.method.name = method
  return config.parse(c)


def main(devices: int, names: list[str]) -> None:
  """Prints what the compiler says of each case."""
  jax.config.update("jax_num_cpu_devices", devices)
  for name in names:
    preset, changes, method, shape = CASES[name]
    architecture = dataclasses.replace(presets.get(preset), **changes)
    sizes = meshes.Sizes(*shape)
    used = jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor]
    mesh = sharding.make_mesh(*sizes, devices=used)
    given = settings(method, max(8, sizes.data * sizes.fsdp))
    said = compiled_update.compile_update(given, architecture, mesh)
    plan = memory_plan.plan(given, architecture, sizes.abstract())
    print(
      json.dumps(
        {
          "name": name,
          "planned": plan.update_program,
          "compiled": said.total_bytes,
          "collectives": said.collectives,
        }
      ),
      flush=True,
    )


if __name__ == "__main__":
  main(int(sys.argv[1]), sys.argv[2:])
