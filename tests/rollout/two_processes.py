"""One of two processes that sample one batch together.

python -m tests.rollout.two_processes PROCESS PORT FILE
"""

import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bilevel_jax import types
from bilevel_jax.rollout import engine
from tests import tabular

VOCABULARY = 6


def weights():
  """Returns the table that both sides sample from, on the host."""
  base = tabular.policy(VOCABULARY).init(jax.random.key(7))
  return jax.device_get(base)


def requests() -> types.Requests:
  """Returns prompts whose completions end at different times."""
  prompts = [(1, 2), (3,), (0, 4, 5, 1)]
  return types.Requests(
    prompts=[np.array(prompt, np.int32) for prompt in prompts],
    prompt_ids=np.arange(3),
    samples_per_prompt=4,
    max_new_tokens=12,
    eos_ids=(0,),
    sampling=types.Sampling(),
    key=jax.random.key(0),
  )


def main() -> None:
  """Writes the completions to FILE-PROCESS.npz."""
  process, port, file = sys.argv[1:]
  jax.config.update("jax_num_cpu_devices", 2)
  jax.distributed.initialize(
    f"127.0.0.1:{port}", num_processes=2, process_id=int(process)
  )
  mesh = jax.make_mesh(
    (4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rollout = engine.generate(
    tabular.policy(VOCABULARY),
    jax.device_put(weights(), NamedSharding(mesh, PartitionSpec())),
    requests(),
    segment=4,
    sharding=NamedSharding(mesh, PartitionSpec("fsdp")),
  )
  np.savez(
    f"{file}-{process}.npz", tokens=rollout.tokens, lengths=rollout.lengths
  )
  jax.distributed.shutdown()


if __name__ == "__main__":
  main()
