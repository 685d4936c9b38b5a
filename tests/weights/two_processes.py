"""One of two processes that export weights which neither of them has whole.

python -m tests.weights.two_processes PROCESS PORT WEIGHTS OUT
"""

import sys

import jax
from jax.sharding import NamedSharding, PartitionSpec

from bilevel_jax.weights import huggingface, huggingface_names


def main() -> None:
  """Writes to OUT what it loaded from WEIGHTS."""
  process, port, weights, out = sys.argv[1:]
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 2)
  jax.distributed.initialize(
    f"127.0.0.1:{port}", num_processes=2, process_id=int(process)
  )
  architecture = huggingface.read_architecture(weights)
  whole = NamedSharding(jax.make_mesh((4,), ("fsdp",)), PartitionSpec())
  split = NamedSharding(whole.mesh, PartitionSpec(None, "fsdp"))
  base = huggingface.load_base(
    weights,
    architecture,
    jax.tree.map(
      lambda w: split if w.stacked and len(w.shape) == 2 else whole,
      huggingface_names.names(architecture),
    ),
  )
  assert not base["layers"]["q"]["kernel"].is_fully_addressable
  huggingface.export(out, architecture, base)


if __name__ == "__main__":
  main()
