"""Several processes as one run: how they start, meet, and part.

Every process runs the same program on the same settings and examples, and
takes the same decisions, from numbers that all of them hold. The first one
alone writes files and speaks. docs/several_processes.md says more.
"""

import contextlib
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bilevel_jax import errors, types

_T = TypeVar("_T")
_MESSAGE_BYTES = 2048
_SHUTDOWN_S = 60  # that an orderly end waits for the other processes


class SharedError(errors.ConfigError):
  """A ConfigError that every process of the run raises."""


def start(coordinator: str | None, count: int | None, index: int | None):
  """Returns nothing; joins the processes of a run, if there are several.

  Must come before anything that asks JAX for its devices. Without arguments
  JAX's own detection is asked: SLURM, Open MPI, TPU pods, GKE.

  Args:
    coordinator: HOST:PORT of the first process, any free port of its host.

  Raises:
    ConfigError: only some are given, or they cannot be; or the cluster that
      was detected cannot be joined.
  """
  if jax.distributed.is_initialized():
    return
  given = (coordinator, count, index)
  alone = given == (None, None, None)
  if alone and not _has_neighbours():
    return
  if not alone:
    _check(coordinator, count, index)
  # Ours (`training.termination`) says more, and only where it can be obeyed.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      *given,
      # JAX gives each process of a cluster one GPU; those that are started
      # by hand keep all that they can see.
      cluster_detection_method=None if alone else "deactivate",
      shutdown_timeout_seconds=_SHUTDOWN_S,
    )
  except (RuntimeError, ValueError, KeyError) as error:
    if alone and str(error) == "coordinator_address should be defined.":
      return  # nothing was detected
    reason = " ".join(str(error).split())
    raise errors.ConfigError(
      "the processes of the run cannot join (--coordinator, --processes and "
      f"--process say how, where detection fails): {reason}"
    ) from None
  if jax.process_count() > 1 and jax.default_backend() == "cpu":
    # A CPU's program that comes from the cache has lost the order of its
    # collectives, and waits for ever (seen with jaxlib 0.10.2).
    jax.config.update("jax_enable_compilation_cache", False)


def _check(coordinator, count, index) -> None:
  flags = {
    "--coordinator": coordinator,
    "--processes": count,
    "--process": index,
  }
  got = [name for name, value in flags.items() if value is not None]
  if len(got) < len(flags):
    raise errors.ConfigError(
      "--coordinator, --processes and --process must be given together, got "
      f"only {' and '.join(got)}"
    )
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal():
    raise errors.ConfigError(
      f"--coordinator must be HOST:PORT, got {coordinator!r}"
    )
  if count < 1:
    raise errors.ConfigError(f"--processes must be at least 1, got {count}")
  if not 0 <= index < count:
    raise errors.ConfigError(
      f"--process must be from 0 to {count - 1}, one less than --processes, "
      f"got {index}"
    )


def _has_neighbours() -> bool:
  """Whether JAX's detection is worth asking.

  It takes a cluster's job of one process for a cluster, and a pod of
  Kubernetes for a part of an indexed job.
  """
  environment = os.environ
  if "TPU_WORKER_HOSTNAMES" in environment:  # GKE
    return True
  if "KUBERNETES_SERVICE_HOST" in environment:
    return "JOB_COMPLETION_INDEX" in environment
  counts = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
  return not any(environment.get(name) == "1" for name in counts)


def several() -> bool:
  """Returns whether the run has more than one process."""
  # Asking for the count would start a single process's devices.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Returns whether this process writes files and speaks."""
  return not several() or jax.process_index() == 0


def gather(tree: types.Tree) -> types.Tree:
  """Returns the host arrays of all processes, on a new axis 0.

  Args:
    tree: numpy arrays or scalars, of the same shapes in every process.
  """
  if not several():
    return jax.tree.map(lambda x: np.asarray(x)[None], tree)
  devices = np.array(jax.devices()).reshape(jax.process_count(), -1)
  mesh = jax.sharding.Mesh(devices, ("process", "device"))
  rows = NamedSharding(mesh, PartitionSpec("process"))
  everywhere = NamedSharding(mesh, PartitionSpec())
  mine = jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(rows, np.asarray(x)[None]),
    tree,
  )
  # Where the first device has the answer (`multihost_utils.process_allgather`
  # waits for no more), another may not have met its neighbours yet: it would
  # wait for minutes if they left now, and its process with it.
  return jax.device_get(jax.block_until_ready(jax.device_put(mine, everywhere)))


def any_of(flag: bool) -> bool:
  """Returns whether the flag is set in any process."""
  return bool(gather(np.array(flag)).any())


def divide(
  items: int, work: Callable[[Sequence[int]], types.Tree]
) -> types.Tree:
  """Returns the work done on all items, each process doing its share.

  Item n falls to process n mod P, so that neighbours, which are alike, are
  spread.

  Args:
    work: numbers of n items -> tree of numpy arrays [n, ...]; called once.
  """
  if not several():
    return work(range(items))
  processes = jax.process_count()
  most = -(-items // processes)

  def padded(x):
    return np.concatenate([x, np.zeros((most - len(x), *x.shape[1:]), x.dtype)])

  done = work(range(jax.process_index(), items, processes))
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:items],
    gather(jax.tree.map(padded, done)),
  )


def put(
  tree: types.Tree, sharding: jax.sharding.Sharding | types.Tree
) -> types.Tree:
  """Returns host arrays, the same in every process, on the devices.

  Args:
    sharding: of every array, or a tree of shardings.
  """
  if not several():
    return jax.device_put(tree, sharding)
  if isinstance(sharding, jax.sharding.Sharding):
    every = sharding
    sharding = jax.tree.map(lambda _: every, tree)
  # `device_put` would send every array to every process, to compare them.
  return jax.tree.map(
    lambda x, place: jax.make_array_from_callback(
      np.shape(x), place, lambda index: np.asarray(x)[index]
    ),
    tree,
    sharding,
  )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Makes a ConfigError of the block in one process one of all.

  The processes meet at the end of the block. In it nothing may wait for
  another process, except for another such block.

  Raises:
    SharedError: what the first of the processes that failed has to say.
  """
  try:
    yield
  except SharedError:
    raise
  except errors.ConfigError as error:
    if several():
      _meet(str(error))
    raise
  if several():
    _meet("")


def _meet(complaint: str) -> None:
  for process, text in enumerate(texts(complaint)):
    if text:
      where = f" (process {process})" if process else ""
      raise SharedError(text + where) from None


def texts(mine: str) -> list[str]:
  """Returns a text of each process; of several, its first 2048 bytes."""
  if not several():
    return [mine]
  message = np.zeros(_MESSAGE_BYTES, np.uint8)
  said = mine.encode(errors="replace")[:_MESSAGE_BYTES]
  message[: len(said)] = np.frombuffer(said, np.uint8)
  return [
    bytes(row[row > 0]).decode(errors="ignore") for row in gather(message)
  ]


def on_first(work: Callable[[], _T]) -> _T | None:
  """Returns what `work` does in the first process; the others wait for it.

  Raises:
    SharedError: in every process, what `work` raised as a ConfigError.
  """
  with together():
    return work() if is_first() else None


def check_same(what: str, data: bytes) -> None:
  """Returns nothing if the data are the same in every process.

  Args:
    what: the data's name, a plural.

  Raises:
    SharedError: they differ.
  """
  sums = gather(np.uint32(zlib.crc32(data)))
  others = np.flatnonzero(sums != sums[0])
  if len(others):
    raise SharedError(
      f"{what} must be the same in every process, but those of process "
      f"{others[0]} differ from those of process 0"
    )


def check_mesh(mesh: jax.sharding.Mesh) -> None:
  """Returns nothing if every process has a device in the mesh.

  Raises:
    ConfigError: one has none.
  """
  present = {device.process_index for device in mesh.devices.flat}
  absent = sorted(set(range(jax.process_count())) - present)
  if absent:
    raise errors.ConfigError(
      "mesh.data x mesh.fsdp x mesh.tensor must reach the devices of all "
      f"{jax.process_count()} processes, got {mesh.size} devices, none of "
      f"process {absent[0]}"
    )


def leave(code: int, *, shared: bool) -> None:
  """Exits, though other processes may be waiting for this one.

  Args:
    shared: whether all leave now. Otherwise this one ends at once, without
      the usual farewell, and the others fail as soon as they notice.
  """
  if shared or not several():
    sys.exit(code)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
