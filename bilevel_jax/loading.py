"""Weights from anywhere, with their tokenizer, ready to sample."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax

from bilevel_jax import config, types
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.models import policy as policy_lib
from bilevel_jax.models import presets, sources, transformer

Place = Callable[
  [presets.Architecture, types.Tree],
  tuple[jax.sharding.NamedSharding, types.Tree],
]


class Model(NamedTuple):
  """A model that can be asked."""

  architecture: presets.Architecture
  policy: types.Policy
  weights: types.Tree  # what `policy.merge` returned
  tokenizer: tokenizer_lib.Tokenizer


def load(
  source: str,
  scratch: pathlib.Path,
  wording: config.Tokenizer,
  *,
  revision: str | None = None,
  dtype: str | None = None,
  place: Place | None = None,
) -> Model:
  """Returns the model that `source` names.

  Args:
    source: what `models.sources.load` takes.
    scratch: a directory for a GGUF file's tokenizer.
    wording: how a prompt is put.
    revision: branch, tag or commit of a hub id.
    dtype: of weights and cache; None: float32 on a CPU, else bfloat16.
    place: from an architecture and the shapes of its base to where rows are
      (`policy.rows`) and where each array is; None: on one device.

  Raises:
    ConfigError: it cannot be found, read, or put together.
  """
  found = sources.find(source, scratch, revision=revision)
  worded = tokenizer(found.files, wording)
  worded.check_fits(found.architecture.vocab_size)
  rows, places = None, None
  if place is not None:
    shapes = jax.eval_shape(
      functools.partial(transformer.init, architecture=found.architecture),
      jax.random.key(0),
    )
    rows, places = place(found.architecture, shapes)
  on_cpu = jax.default_backend() == "cpu"
  policy = policy_lib.make(
    found.architecture,
    adapter_rank=1,
    adapter_alpha=1.0,
    adapter_targets=("q",),
    compute_dtype=dtype or ("float32" if on_cpu else "bfloat16"),
    attention="auto",
    remat="none",
    rows=rows,
  )
  weights = jax.jit(policy.merge)(found.read(places), None)
  return Model(found.architecture, policy, weights, worded)


def tokenizer(
  files: str | pathlib.Path, wording: config.Tokenizer
) -> tokenizer_lib.Tokenizer:
  """Returns the tokenizer of a directory, for prompts put in those words.

  Args:
    files: directory with a tokenizer.json.
    wording: how a prompt is put.

  Raises:
    ConfigError: as `data.tokenizer.load`.
  """
  return tokenizer_lib.load(
    files,
    chat_template=wording.chat_template,
    system_prompt=wording.system_prompt,
    prompt=wording.prompt,
    use_chat_template=wording.use_chat_template,
  )


def wording(
  source: str,
  plain: config.Tokenizer,
  *,
  system: str | None = None,
  template: str | None = None,
) -> config.Tokenizer:
  """Returns how a prompt is put: as in the run that left the weights.

  Args:
    source: where the weights are.
    plain: how it is put where they are not of a run.
    system: system message, in place of that one's.
    template: the user's turn, in place of that one's.

  Raises:
    ConfigError: a run's settings cannot be read.
  """
  weights = pathlib.Path(source)
  run = weights.parent if weights.name == "export" else weights
  settings = run / "config.json"
  found = plain
  if settings.is_file() and (run / "export").is_dir():
    try:
      given = json.loads(settings.read_text(encoding="utf-8"))
      found = config.Tokenizer(**given["config"]["tokenizer"])
    except (ValueError, LookupError, TypeError) as error:
      raise config.ConfigError(
        f"{settings} must hold a run's settings, got: {error}"
      ) from error
  changes = {"system_prompt": system, "prompt": template}
  return dataclasses.replace(
    found, **{name: text for name, text in changes.items() if text is not None}
  )
