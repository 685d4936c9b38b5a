"""One of two processes that compute one hypergradient together.

python -m tests.bilevel.two_processes PROCESS PORT FILE
"""

import sys

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from tests.bilevel import network


def main() -> None:
  """Writes the gradient to FILE, from process 0."""
  process, port, file = sys.argv[1:]
  jax.config.update("jax_num_cpu_devices", 2)
  jax.distributed.initialize(
    f"127.0.0.1:{port}", num_processes=2, process_id=int(process)
  )
  assert jax.device_count() == 4
  mesh = jax.make_mesh(
    (4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  placed = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))

  def put(tree, sharding):
    return jax.tree.map(
      lambda x: jax.make_array_from_callback(
        x.shape, sharding, lambda index: np.asarray(x)[index]
      ),
      tree,
    )

  base, adapter, batch = jax.device_get(network.inputs())
  run = network.hypergradient(network.UNROLLED, network.objective())
  found = jax.jit(lambda *args: run(*args).gradient, out_shardings=placed())(
    put(base, placed(None, "fsdp")),
    put(adapter, placed()),
    put(batch, placed("fsdp")),
    optax.sgd(network.STEP).init(base),
  )
  jax.block_until_ready(found)  # all of it, before either leaves
  if process == "0":
    np.savez(file, **jax.tree.map(np.asarray, found))
  jax.distributed.shutdown()


if __name__ == "__main__":
  main()
