"""A peer's side of benchmarks/rollout.py: JSON lines in, JSON lines out.

The first line sets the peer up, every later one is a workload:

  {"model": directory with a config.json, "random": whether it has no weights,
   "dtype": "float32" or "bfloat16", "options": {...}}
  -> {"name": ..., "device": ..., "parameters": ...}

  {"prompts": [[id, ...], ...], "lengths": [n, ...] or null, "budget": n,
   "eos_ids": [id, ...], "batch": rows of a static batch, "temperature": x,
   "seed": n}
  -> {"seconds": ..., "slots": tokens computed, kept or not,
      "lengths": [n, ...], "tokens": [[id, ...], ...],
      "cache_bytes": the most that was held, "compilations": in this run}

With `lengths`, prompts are equally long, and request r ends with an EOS, id 0,
as its lengths[r]-th token: the number is also the second token of its prompt.
Without, it ends by itself.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Handler = Callable[[dict[str, Any]], dict[str, Any]]


def serve(set_up: Callable[[dict[str, Any]], tuple[Handler, Any]]) -> None:
  """Answers the lines of stdin until it ends.

  Args:
    set_up: what the first line says -> (what runs a workload, the answer).
  """
  # What the peer's packages print must not get between the answers.
  with os.fdopen(os.dup(1), "w", buffering=1) as answers:
    os.dup2(2, 1)
    handler = None
    for line in sys.stdin:
      request = json.loads(line)
      if handler is None:
        handler, answer = set_up(request)
      else:
        answer = handler(request)
      answers.write(json.dumps(answer) + "\n")


def planned_bytes(compiled: Any) -> int:
  """Returns what a program holds at most, by its compiler's analysis."""
  used = compiled.memory_analysis()
  return (
    used.argument_size_in_bytes
    + used.output_size_in_bytes
    - used.alias_size_in_bytes
    + used.temp_size_in_bytes
  )


def count_compilations() -> Callable[[], int]:
  """Returns a function: how many programs XLA compiled since its last call."""
  import jax

  seen = []

  def listen(event, duration, **_):
    del duration
    if event == "/jax/core/compile/backend_compile_duration":
      seen.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)

  def count():
    compiled = len(seen)
    seen.clear()
    return compiled

  return count
