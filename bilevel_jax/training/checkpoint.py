"""Checkpoints: a TrainState and where the host's streams stood, on disk."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from bilevel_jax import errors, types


class Checkpoints:
  """The checkpoints of one run, written in the background.

  A checkpoint gets its name, its step, by one rename when everything in it
  has been written, so what a killed process leaves is never taken for one. It
  holds a flat mapping from paths such as base/layers/q/kernel to arrays: what
  a tree is made of (None, empty groups, optax's tuples) comes from the program
  that restores, and files stay readable when those types move.
  """

  def __init__(
    self, directory: str | pathlib.Path, *, keep_last: int, keep_best: int
  ) -> None:
    """Opens the directory, or makes it, and clears what a kill left behind.

    Args:
      directory: where the checkpoints are, or will be.
      keep_best: checkpoints of the highest accuracy kept besides.
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
    with _errors_alone():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(_flatten(state)),
          host=ocp.args.JsonSave(host),
        ),
        metrics=None if accuracy is None else {"accuracy": float(accuracy)},
      )

  def restore(
    self, abstract_state: types.TrainState, step: int | None = None
  ) -> tuple[int, types.TrainState, dict[str, Any]] | None:
    """Returns (step, state, host) of a complete checkpoint, or None.

    Args:
      abstract_state: ShapeDtypeStructs with shardings, or arrays. Its mesh
        may differ from the one that the checkpoint was saved on.
      step: which one; default: the latest.

    Raises:
      ConfigError: no checkpoint of that step, or one of another model.
    """
    self.wait()
    if step is None:
      step = self._manager.latest_step()
      if step is None:
        return None
    elif step not in self._manager.all_steps():
      have = ", ".join(map(str, self.steps())) or "none"
      raise errors.ConfigError(
        f"checkpoint {step} must be one of those in {self.directory}, "
        f"which has {have}"
      )
    wanted = jax.tree.map(_abstract, _flatten(abstract_state))
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
    return step, _unflatten(abstract_state, restored["state"]), restored["host"]

  def wait(self) -> None:
    """Returns when every save has reached the disk; raises what failed."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and frees the threads."""
    self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


@contextlib.contextmanager
def _errors_alone() -> Iterator[None]:
  """Orbax warns of a checkpoint without an accuracy, where all is well."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(before)


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
