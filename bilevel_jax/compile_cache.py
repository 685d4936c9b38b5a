"""Keeps compiled programs between runs, in the user's cache directory."""

import os
import pathlib
import sys

import filelock
import jax

_MAX_BYTES = 8 * 2**30
_ENTRY, _TIME = "-cache", "-atime"  # as jax names the files of an entry


def enable() -> None:
  """Keeps compiled programs in the user's cache directory, 8 GiB at most.

  JAX_COMPILATION_CACHE_DIR names another directory;
  JAX_ENABLE_COMPILATION_CACHE=0 keeps none. Where the directory cannot be used,
  a sentence says so, and every run compiles its programs anew.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  try:
    directory = pathlib.Path(caches).expanduser() / "bilevel_jax" / "programs"
    drop_unfinished(directory)
  except (OSError, RuntimeError) as error:
    print(f"no cache of compiled programs: {error}", file=sys.stderr)
    return
  jax.config.update("jax_compilation_cache_dir", str(directory))
  jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)


def drop_unfinished(directory: pathlib.Path) -> None:
  """Removes the entries that a killed run began to write.

  jax writes an entry and then the time of its use, both under a lock. An entry
  without a time may be cut short, and no entry is written after it: looking
  for the oldest, jax finds no time and gives up.
  """
  directory.mkdir(parents=True, exist_ok=True)
  with filelock.FileLock(directory / ".lockfile"):
    for entry in directory.glob(f"*{_ENTRY}"):
      name = entry.name.removesuffix(_ENTRY)
      if not entry.with_name(f"{name}{_TIME}").exists():
        entry.unlink()
