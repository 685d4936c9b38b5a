"""One of two processes that meet in every way that `processes` offers.

python -m tests.two_processes PROCESS PORT FILE
"""

import pathlib
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bilevel_jax import errors, processes


def main() -> None:
  """Fails where the two disagree on anything."""
  index, port, file = int(sys.argv[1]), *sys.argv[2:]
  jax.config.update("jax_num_cpu_devices", 2)
  assert not processes.several()
  processes.start(f"127.0.0.1:{port}", 2, index)
  assert processes.several()
  assert processes.is_first() == (index == 0)

  gathered = processes.gather({"index": np.int32(index), "row": np.arange(3)})
  np.testing.assert_array_equal(gathered["index"], [0, 1])
  np.testing.assert_array_equal(gathered["row"], [[0, 1, 2]] * 2)

  assert processes.texts("") == ["", ""]
  assert processes.texts("\xe4\n" * index) == ["", "\xe4\n"]
  cut = processes.texts("x" * 3000 + str(index))
  assert cut == ["x" * 2048] * 2

  assert not processes.any_of(False)
  assert processes.any_of(index == 1)

  for items in (0, 1, 2, 5):
    shares = []

    def square(share, shares=shares):
      shares.append(list(share))
      numbers = np.array(share, np.float32)
      return {"square": numbers**2, "odd": numbers % 2 == 1}

    done = processes.divide(items, square)
    everything = np.arange(items)
    np.testing.assert_array_equal(done["square"], everything**2)
    np.testing.assert_array_equal(done["odd"], everything % 2 == 1)
    assert shares == [list(everything[index::2])]

  mesh = jax.make_mesh(
    (4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = NamedSharding(mesh, PartitionSpec("fsdp"))
  host = np.array([1.0, np.nan, 3.0, 4.0], np.float32)
  array = processes.put({"x": host, "none": None}, rows)["x"]
  assert array.sharding == rows
  mine = np.concatenate([shard.data for shard in array.addressable_shards])
  np.testing.assert_array_equal(mine, host[2 * index :][:2])

  with processes.together():
    pass

  def fail(guilty: int) -> None:
    with processes.together(), processes.together():
      if index == guilty:
        raise errors.ConfigError("size must be odd, got 4: Ä")

  for guilty in range(2):
    where = " (process 1)" if guilty else ""
    with pytest.raises(processes.SharedError) as caught:
      fail(guilty)
    assert str(caught.value) == "size must be odd, got 4: Ä" + where

  def write() -> str:
    with pathlib.Path(file).open("a") as out:
      out.write("once")
    return "written"

  assert processes.on_first(write) == ("written" if index == 0 else None)
  assert pathlib.Path(file).read_text() == "once"

  processes.check_same("the settings", b"a")
  with pytest.raises(processes.SharedError, match="the settings must be the"):
    processes.check_same("the settings", b"ab"[index:])

  processes.check_mesh(mesh)
  with pytest.raises(
    errors.ConfigError, match="got 2 devices, none of process"
  ):
    processes.check_mesh(
      jax.make_mesh(
        (2,),
        ("fsdp",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:2],
      )
    )


if __name__ == "__main__":
  main()
