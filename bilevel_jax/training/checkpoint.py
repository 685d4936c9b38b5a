"""Checkpoints: a TrainState and where the host's streams stood, on disk."""

import contextlib
import errno
import functools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from bilevel_jax import checksums, errors, processes, types


class Checkpoints:
  """The checkpoints of one run, written in the background.

  A checkpoint gets its name, its step, by one rename when everything in it
  has been written, its checksums last, so what a killed process leaves is
  never taken for one, nor is one that has changed on the disk. It holds a flat
  mapping from paths such as base/layers/q/kernel to arrays: what a tree is
  made of (None, empty groups, optax's tuples) comes from the program that
  restores, and files stay readable when those types move.
  """

  def __init__(
    self,
    directory: str | pathlib.Path,
    *,
    keep_last: int,
    keep_best: int,
    warn: Callable[[str], object] = lambda words: None,
  ) -> None:
    """Opens the directory, or makes it, and clears what a kill left behind.

    Args:
      directory: where the checkpoints are, or will be.
      keep_best: checkpoints of the highest accuracy kept besides.
      warn: called with a sentence where a checkpoint is damaged.
    """
    keep: list[checkpoint_managers.PreservationPolicy] = [
      checkpoint_managers.LatestN(keep_last)
    ]
    if keep_best:
      keep.append(
        checkpoint_managers.BestN(
          get_metric_fn=_accuracy,
          n=keep_best,
          keep_checkpoints_without_metrics=False,
        )
      )
    self.directory = pathlib.Path(directory).absolute()
    self._aside = self.directory.with_name("damaged_checkpoints")
    self._warn, self._saving = warn, 0
    _quieten_libraries()
    # Orbax reads the accuracies of all of them at once.
    for step in complete(self.directory):
      if what := _damage(self.directory / str(step), "metrics/*"):
        self._set_aside(step, what)
    self._manager = ocp.CheckpointManager(
      self.directory,
      item_handlers={
        "state": ocp.PyTreeCheckpointHandler(),
        "host": ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        # Accuracies are written down only where there is a best_fn.
        best_fn=_accuracy,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(
          # Else a directory that cannot be made is waited for, for minutes.
          create_directories_asynchronously=False,
          post_finalization_callback=self._write_checksums,
        ),
      ),
    )

  def steps(self) -> list[int]:
    """Returns the steps of the complete checkpoints, rising."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: types.TrainState,
    host: dict[str, Any],
    *,
    accuracy: float | None = None,
  ) -> None:
    """Copies the state, then writes it in the background.

    The arrays may be donated, and `host` changed, as soon as this returns. A
    step that is there already is left as it is. An error of an earlier write
    is raised here.

    Args:
      step: steps done; the checkpoint's name.
      host: JSON: positions of streams, fingerprints.
      accuracy: of this state, where it was measured, for `keep_best`.
    """
    # It is written later, by another thread: the caller's may move on, and
    # what is not JSON is refused here.
    host = json.loads(json.dumps(host))
    self.wait()  # one may still be writing its checksums
    self._saving = step
    with self._failures_told():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(_flatten(state)),
          host=ocp.args.JsonSave(host),
        ),
        metrics=None if accuracy is None else {"accuracy": float(accuracy)},
      )

  def restore(
    self, abstract_state: types.TrainState
  ) -> tuple[int, types.TrainState, dict[str, Any]] | None:
    """Returns (step, state, host) of the latest complete checkpoint, or None.

    One whose files are not those that were written is set aside and told of,
    and the one before it is read. One without checksums is of an older version,
    and is read as it is.

    Args:
      abstract_state: ShapeDtypeStructs with shardings, or arrays. Its mesh
        may differ from the one that the checkpoint was saved on.

    Raises:
      ConfigError: it is of another model, or all of them are damaged.
    """
    self.wait()
    damaged: dict[int, str] = {}
    for candidate in reversed(self.steps()):
      found = self._read(candidate, abstract_state)
      if not isinstance(found, str):
        for lost, what in damaged.items():
          self._set_aside(lost, f"{what}; going on from step {candidate}")
        if damaged:
          self._manager.reload()
        return candidate, *found
      damaged[candidate] = found
    aside = dict.fromkeys(complete(self._aside), f"in {self._aside}")
    if damaged or aside:
      listed = "; ".join(
        f"{step}: {what}" for step, what in (aside | damaged).items()
      )
      raise errors.ConfigError(
        f"no checkpoint in {self.directory} is whole, so that nothing can be "
        f"resumed: {listed}"
      )
    return None

  def _read(
    self, step: int, like: types.TrainState
  ) -> tuple[types.TrainState, dict[str, Any]] | str:
    """Returns (state, host), or what is wrong with the files."""
    where = self.directory / str(step)
    if what := _damage(where):
      return what
    summed = (where / checksums.FILE).exists()
    try:
      found = self._load(step, like)
    except (errors.ConfigError, jax.errors.JaxRuntimeError, MemoryError):
      raise
    except Exception as error:
      if summed:
        raise
      words = " ".join(str(error).split())
      return f"it cannot be read ({type(error).__name__}: {words:.200})"
    if not summed:
      self._warn(
        f"checkpoint {step} has no checksums, as it is of an older version: it "
        "is taken as it is"
      )
    return found

  def _load(
    self, step: int, like: types.TrainState
  ) -> tuple[types.TrainState, dict[str, Any]]:
    wanted = jax.tree.map(_abstract, _flatten(like))
    saved = self._manager.item_metadata(step)["state"].tree
    _check_equal(wanted, saved, f"{self.directory}/{step}")
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          item=wanted,
          restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        ),
        host=ocp.args.JsonRestore(),
      ),
    )
    return _unflatten(like, restored["state"]), restored["host"]

  def _set_aside(self, step: int, what: str) -> None:
    """Moves a damaged checkpoint to where none is looked for."""
    aside = self._aside / str(step)

    def move() -> None:
      shutil.rmtree(aside, ignore_errors=True)
      self._aside.mkdir(exist_ok=True)
      (self.directory / str(step)).rename(aside)

    processes.on_first(move)
    self._warn(f"checkpoint {step} is damaged and was moved to {aside}: {what}")

  def _write_checksums(self) -> None:
    """Called when a checkpoint is complete, before it gets its name."""
    name = f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}"
    stage = self.directory / name
    written = [path for path in stage.glob("*/**/*") if path.is_file()]
    checksums.write(stage, written)

  def wait(self) -> None:
    """Returns when every save has reached the disk; raises what failed."""
    with self._failures_told():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and frees the threads."""
    self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: object, error: object, trace: object) -> None:
    if error is None:
      self.close()
      return
    with contextlib.suppress(Exception):  # it would hide the first
      self._manager.close()

  @contextlib.contextmanager
  def _failures_told(self) -> Iterator[None]:
    """Makes one sentence of what the libraries raise for a disk's failure."""
    try:
      yield
    except Exception as error:
      # Some of it is an OSError, some of another kind that quotes its words.
      causes = [w for code in _DISK if (w := os.strerror(code)) in str(error)]
      if not causes and not self.directory.is_dir():
        causes = [os.strerror(errno.ENOENT)]
      if not causes:
        raise
      raise OSError(
        f"a checkpoint cannot be written to {self.directory}: {causes[0]}"
      ) from error


_DISK = (
  *errors.OF_DISKS,
  *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR),
)


@functools.cache
def _quieten_libraries() -> None:
  """Drops what orbax and tensorstore print; what failed is raised besides."""
  logging.get_absl_logger().addFilter(lambda r: "orbax" not in r.pathname)
  shown = sys.unraisablehook

  def show(failed: Any) -> None:
    # Writes that end after another one has failed.
    if str(failed.exc_value) != "Event loop is closed":
      shown(failed)

  sys.unraisablehook = show


def complete(directory: pathlib.Path) -> list[int]:
  """Returns the steps of the complete checkpoints in a directory, rising."""
  paths = directory.iterdir() if directory.is_dir() else ()
  return sorted(int(path.name) for path in paths if path.name.isdecimal())


def _damage(directory: pathlib.Path, pattern: str = "*") -> str | None:
  """What any process finds in its share of the files."""
  try:
    with processes.together():
      if what := checksums.damage(directory, pattern):
        raise errors.ConfigError(what)
  except errors.ConfigError as error:
    return str(error)
  return None


def _accuracy(metrics: dict[str, float]) -> float:
  return metrics["accuracy"]


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flatten(tree: types.Tree) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): _data(leaf)
    for path, leaf in leaves
  }


def _data(leaf: Any) -> Any:
  """Returns a leaf as numbers: a PRNG key as its words."""
  if not _is_key(leaf):
    return leaf
  if isinstance(leaf, jax.Array):
    return jax.random.key_data(leaf)
  words = jax.eval_shape(jax.random.key_data, leaf)
  return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=leaf.sharding)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _unflatten(tree: types.Tree, values: dict[str, jax.Array]) -> types.Tree:
  leaves, structure = jax.tree.flatten(tree)
  restored = [
    _as_key(values[name], leaf) if _is_key(leaf) else values[name]
    for name, leaf in zip(_flatten(tree), leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, restored)


def _as_key(words: jax.Array, like: Any) -> jax.Array:
  # The name of a key's generator can be asked of keys only, not of their type.
  names: list[Any] = []
  jax.eval_shape(lambda key: names.append(jax.random.key_impl(key)), like)
  return jax.random.wrap_key_data(words, impl=names[0])


def _check_equal(
  wanted: dict[str, Any], saved: dict[str, Any], where: str
) -> None:
  for path in [*wanted, *(path for path in saved if path not in wanted)]:
    expected, got = _describe(wanted.get(path)), _describe(saved.get(path))
    if expected != got:
      raise errors.ConfigError(
        f"the checkpoint {where} is of another model: {path} must be "
        f"{expected}, got {got}"
      )


def _describe(leaf: Any) -> str:
  if leaf is None:
    return "absent"
  shape = ", ".join(map(str, leaf.shape))
  return f"{np.dtype(leaf.dtype).name} [{shape}]"
