"""What was saved comes back to the bit, or a sentence says why not."""

import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax import errors, types
from bilevel_jax.training import checkpoint, sharding
from tests import processes

WIDTH = 8


def make_state(seed, *, rank=2, rl_only=True, width=WIDTH):
  keys = jax.random.split(jax.random.key(seed), 4)
  base = {
    "embedding": jax.random.normal(keys[0], (12, width)),
    "layers": {"q": {"kernel": jax.random.normal(keys[1], (2, width, 4))}},
  }
  adapter = {
    "q": {
      "A": jax.random.normal(keys[2], (2, width, rank)),
      "B": jnp.full((2, rank, 4), jnp.nan),
    }
  }
  adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  return types.TrainState(
    updates=jnp.asarray(seed, jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
    base=base,
    adapter=adapter,
    rl_only_base=jax.tree.map(lambda x: x + 1, base) if rl_only else None,
    optimizer_states={
      "base": adam.init(base),
      "adapter": optax.sgd(0.1).init(adapter),
    },
    extra={"coefficient": jnp.float32(0.5), "nothing": {}, "key": keys[3]},
  )


def abstract(tree, place):
  """Returns ShapeDtypeStructs; `place` is a sharding or a tree of them."""
  if isinstance(place, jax.sharding.Sharding):
    place = jax.tree.map(lambda _: place, tree)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, place
  )


def one_device():
  return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def words(leaf):
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf)


def assert_same_bits(tree, other):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype
    assert words(a).tobytes() == words(b).tobytes()


@pytest.fixture
def opened(tmp_path):
  made = []

  def open_(keep_last=2, keep_best=1, directory=tmp_path / "checkpoints"):
    made.append(
      checkpoint.Checkpoints(
        directory, keep_last=keep_last, keep_best=keep_best
      )
    )
    return made[-1]

  yield open_
  for each in made:
    each.close()


def test_every_field_comes_back_to_the_bit(opened):
  state, host = make_state(3), {"stream": {"epoch": 1, "next": [4, 5]}}
  checkpoints = opened()
  checkpoints.save(3, state, host)
  checkpoints.close()
  again = opened()
  step, restored, restored_host = again.restore(abstract(state, one_device()))
  assert step == 3
  assert restored_host == host
  assert_same_bits(state, restored)


def test_absent_parts_stay_absent(opened):
  state = make_state(1, rl_only=False)
  checkpoints = opened()
  checkpoints.save(1, state, {})
  _, restored, _ = checkpoints.restore(abstract(state, one_device()))
  assert restored.rl_only_base is None
  assert restored.extra["nothing"] == {}
  assert_same_bits(state, restored)


def test_nothing_saved_restores_nothing(opened):
  assert opened().restore(abstract(make_state(0), one_device())) is None


def test_arrays_may_be_donated_at_once(opened):
  checkpoints = opened(keep_last=5)
  advance = jax.jit(lambda tree: tree + 1, donate_argnums=0)
  state = make_state(0, rl_only=False)
  big = jnp.zeros((16, 256, 1024))
  for step in range(5):
    # A fresh result of a program, as in training; nothing else refers to it.
    big = advance(big)
    checkpoints.save(step, dataclasses.replace(state, base={"big": big}), {})
    for _ in range(3):
      big = advance(big)
  like = abstract(dataclasses.replace(state, base={"big": big}), one_device())
  for step in reversed(checkpoints.steps()):
    latest, restored, _ = checkpoints.restore(like)
    assert latest == step
    np.testing.assert_array_equal(restored.base["big"], 4 * step + 1)
    shutil.rmtree(checkpoints.directory / str(step))
    checkpoints = opened(keep_last=5)


def test_where_the_streams_stood_may_move_on_at_once(opened, monkeypatch):
  given, real = [], checkpoint.ocp.args.JsonSave

  def spy(item):
    given.append(item)
    return real(item)

  monkeypatch.setattr(checkpoint.ocp.args, "JsonSave", spy)
  checkpoints, host = opened(), {"stream": {"next": 1}}
  checkpoints.save(1, make_state(0), host)
  host["stream"]["next"] = 100
  # orbax makes text of it in another thread, at any time from now on.
  assert {"stream": {"next": 1}} in given
  _, _, found = checkpoints.restore(abstract(make_state(0), one_device()))
  assert found == {"stream": {"next": 1}}


def test_what_is_not_json_is_refused_when_it_is_given(opened):
  checkpoints = opened()
  with pytest.raises(TypeError, match="not JSON serializable"):
    checkpoints.save(1, make_state(0), {"next": np.int64(3)})
  assert checkpoints.steps() == []


@pytest.mark.parametrize("back", [False, True])
def test_restores_onto_another_mesh(opened, back):
  state = make_state(5)
  mesh = sharding.make_mesh(1, 2, 2)
  split = sharding.shardings(state, mesh)
  assert tuple(split.base["embedding"].spec) == ("tensor", "fsdp")
  first, second = (split, one_device()) if back else (one_device(), split)
  checkpoints = opened()
  checkpoints.save(1, jax.device_put(state, first), {})
  _, restored, _ = checkpoints.restore(abstract(state, second))
  assert_same_bits(state, restored)
  expected = one_device() if back else split.base["embedding"]
  assert restored.base["embedding"].sharding == expected


def test_keeps_the_last_and_the_best_across_a_resume(opened):
  checkpoints = opened(keep_last=2, keep_best=1)
  state = make_state(0)
  for step, accuracy in ((1, 0.3), (2, 0.9), (3, None)):
    checkpoints.save(step, state, {}, accuracy=accuracy)
  checkpoints.close()
  checkpoints = opened(keep_last=2, keep_best=1)
  for step, accuracy in ((4, 0.5), (5, None), (6, 0.4)):
    checkpoints.save(step, state, {}, accuracy=accuracy)
  checkpoints.wait()
  assert checkpoints.steps() == [2, 5, 6]


def test_no_best_is_kept_when_none_is_asked_for(opened):
  checkpoints = opened(keep_last=1, keep_best=0)
  for step in (1, 2):
    checkpoints.save(step, make_state(0), {}, accuracy=1.0 / step)
  checkpoints.wait()
  assert checkpoints.steps() == [2]


def test_a_step_that_is_there_is_left_as_it_is(opened):
  checkpoints = opened()
  checkpoints.save(1, make_state(1), {"a": 1})
  checkpoints.save(1, make_state(2), {"a": 2})
  _, _, host = checkpoints.restore(abstract(make_state(0), one_device()))
  assert host == {"a": 1}


@pytest.mark.parametrize(
  ("other", "sentence"),
  [
    (
      {"rank": 3},
      r"adapter/q/A must be float32 \[2, 8, 3\], got float32 \[2, 8, 2\]",
    ),
    (
      {"width": 16},
      r"adapter/q/A must be float32 \[2, 16, 2\], got float32 \[2, 8, 2\]",
    ),
    (
      {"rl_only": False},
      r"rl_only_base/embedding must be absent, got float32 \[12, 8\]",
    ),
  ],
)
def test_another_model_is_refused_in_one_sentence(opened, other, sentence):
  checkpoints = opened()
  checkpoints.save(1, make_state(1), {})
  like = abstract(make_state(1, **other), one_device())
  with pytest.raises(errors.ConfigError, match=sentence) as error:
    checkpoints.restore(like)
  assert "\n" not in str(error.value)


SAVER = """
import sys
import jax, jax.numpy as jnp
from bilevel_jax import types
from bilevel_jax.training import checkpoint
def state(step):
  return types.TrainState(
    updates=jnp.int32(step), skipped_in_a_row=jnp.int32(0),
    base={str(i): jnp.full((200_000,), step, jnp.float32) for i in range(40)},
    adapter=None, rl_only_base=None, optimizer_states={}, extra={})
if __name__ == "__main__":
  checkpoints = checkpoint.Checkpoints(sys.argv[1], keep_last=2, keep_best=1)
  restored = checkpoints.restore(state(0))
  step = 0
  if restored is not None:
    step, found, host = restored
    assert host == {"step": step} and int(found.updates) == step
    assert all((leaf == step).all() for leaf in found.base.values())
  print("at", step, flush=True)
  while True:
    step += 1
    checkpoints.save(step, state(step), {"step": step}, accuracy=1 / step)
    print("saving", step, flush=True)
    checkpoints.wait()
    print("saved", step, flush=True)
"""


@pytest.mark.timeout(processes.PATIENCE_S)
def test_a_kill_during_a_save_costs_at_most_that_save(tmp_path):
  program = tmp_path / "saver.py"
  program.write_text(SAVER)
  delays, done = random.Random(0), 0
  environment = os.environ | {"PYTHONPATH": str(processes.ROOT)}
  for _ in range(4):
    process = subprocess.Popen(
      [sys.executable, str(program), str(tmp_path / "checkpoints")],
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    time.sleep(delays.uniform(0.0, 0.15))
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines()
    process.wait()
    process.stdout.close()
    start = int(lines[0].split()[1])
    assert start >= done, "a finished save was lost"
    saved = [int(x.split()[1]) for x in lines if x.startswith("saved")]
    done = max([start, *saved])


def test_what_a_killed_save_left_is_not_taken_for_a_checkpoint(opened):
  state = make_state(1)
  checkpoints = opened()
  checkpoints.save(1, state, {})
  checkpoints.close()
  directory = pathlib.Path(checkpoints.directory)
  torn = directory / "2.orbax-checkpoint-tmp"
  (torn / "state").mkdir(parents=True)
  checkpoints = opened()
  step, _, _ = checkpoints.restore(abstract(state, one_device()))
  assert step == 1
  assert not torn.exists()
