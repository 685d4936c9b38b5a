"""A checkpoint that is not as it was written is found out, and left out."""

import pathlib
import random
import re
import shutil

import pytest

from bilevel_jax import checksums, errors
from bilevel_jax.training import checkpoint
from tests.training import test_checkpoint


def _open(directory, told=None):
  warn = told.append if told is not None else print
  return checkpoint.Checkpoints(directory, keep_last=2, keep_best=1, warn=warn)


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp("saved") / "checkpoints"
  with _open(directory) as checkpoints:
    for step in (1, 2):
      state = test_checkpoint.make_state(step)
      checkpoints.save(step, state, {"at": step}, accuracy=step / 2)
  return directory


@pytest.fixture
def saved(two_saved, tmp_path):
  """Two checkpoints, to be damaged."""
  return shutil.copytree(two_saved, tmp_path / "run" / "checkpoints")


def _flip(path: pathlib.Path, chance: random.Random) -> None:
  data = bytearray(path.read_bytes())
  data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
  path.write_bytes(data)


def _cut(path: pathlib.Path, chance: random.Random) -> None:
  data = path.read_bytes()
  path.write_bytes(data[: chance.randrange(len(data))])


def _remove(path: pathlib.Path, chance: random.Random) -> None:
  path.unlink()


def _restore(checkpoints):
  like = test_checkpoint.make_state(0)
  return checkpoints.restore(
    test_checkpoint.abstract(like, test_checkpoint.one_device())
  )


def _assert_restores(checkpoints, step):
  found, state, host = _restore(checkpoints)
  assert (found, host) == (step, {"at": step})
  test_checkpoint.assert_same_bits(state, test_checkpoint.make_state(step))


def _kinds(directory) -> dict[str, pathlib.Path]:
  """One file of every kind that a checkpoint has, the largest data file."""
  data = sorted(directory.glob("state/**/d/*"), key=lambda p: p.stat().st_size)
  names = (
    "state/_METADATA",
    "state/_sharding",
    "state/manifest.ocdbt",
    "state/array_metadatas/process_0",
    "host/metadata",
    "metrics/metrics",
    checksums.FILE,
  )
  return {"data": data[-1]} | {name: directory / name for name in names}


@pytest.mark.parametrize("harm", [_flip, _cut, _remove])
@pytest.mark.parametrize("seed", range(2))
def test_a_changed_file_costs_its_checkpoint_and_is_told(
  saved, tmp_path, harm, seed
):
  """The step before is read, and the lost one is saved again, whole."""
  chance = random.Random(f"{harm.__name__} {seed}")
  for number, name in enumerate(_kinds(saved / "2")):
    if name == checksums.FILE and harm is not _cut:
      continue  # absent, or another as good: a space, another file's sum
    run = tmp_path / str(number)
    copy = shutil.copytree(saved, run / "checkpoints")
    harm(_kinds(copy / "2")[name], chance)
    told = []
    with _open(copy, told) as checkpoints:
      _assert_restores(checkpoints, 1)
      assert len(told) == 1
      aside = run / "damaged_checkpoints" / "2"
      assert aside.is_dir()
      assert f"checkpoint 2 is damaged and was moved to {aside}: " in told[0]
      file = r"\S*/d/\w+" if name == "data" else re.escape(name)
      if name not in (checksums.FILE, "metrics/metrics"):
        assert re.search(f": {file} .*; going on from step 1$", told[0])
      else:
        assert re.search(f": {file} ", told[0])
      checkpoints.save(2, test_checkpoint.make_state(2), {"at": 2})
      _assert_restores(checkpoints, 2)
      assert checkpoints.steps() == [1, 2]


def test_any_bit_of_the_arrays_is_noticed(saved):
  """Twenty flips, of which the library notices none or few."""
  chance = random.Random(0)
  files = [p for p in (saved / "2" / "state").rglob("d/*") if p.is_file()]
  sizes = [path.stat().st_size for path in files]
  for _ in range(20):
    [path] = chance.choices(files, sizes)
    whole = path.read_bytes()
    _flip(path, chance)
    name = path.relative_to(saved / "2").as_posix()
    expected = f"{name} has other bytes than were written"
    assert checksums.damage(saved / "2") == expected
    path.write_bytes(whole)
  assert checksums.damage(saved / "2") is None


def test_without_a_whole_checkpoint_nothing_is_resumed(saved):
  """Again and again: it must not start over the second time."""
  chance = random.Random(0)
  _cut(saved / "1" / "metrics" / "metrics", chance)
  _flip(saved / "2" / "host" / "metadata", chance)
  for _ in range(2):
    with (
      _open(saved) as checkpoints,
      pytest.raises(errors.ConfigError) as refused,
    ):
      _restore(checkpoints)
    words = str(refused.value)
    assert words == (
      f"no checkpoint in {saved} is whole, so that nothing can be resumed: 1: "
      f"in {saved.parent / 'damaged_checkpoints'}; 2: host/metadata has other "
      "bytes than were written"
    )
  assert (saved / "2").is_dir()


def test_a_checkpoint_of_an_older_version_is_read_and_told(saved):
  for step in (1, 2):
    (saved / str(step) / checksums.FILE).unlink()
  told = []
  with _open(saved, told) as checkpoints:
    _assert_restores(checkpoints, 2)
  assert told == [
    "checkpoint 2 has no checksums, as it is of an older version: it is taken "
    "as it is"
  ]
  _cut(saved / "2" / "state" / "_METADATA", random.Random(0))
  told.clear()
  with _open(saved, told) as checkpoints:
    _assert_restores(checkpoints, 1)
  assert "checkpoint 2 is damaged and was moved to " in told[-1]
  assert ": it cannot be read (JSONDecodeError: " in told[-1]
  assert told[-1].endswith("; going on from step 1")
  assert not any("\n" in words for words in told)
