"""A model with merged weights and its tokenizer: all that sampling needs."""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import jax

from bilevel_jax import errors, types
from bilevel_jax.data import json_lines, settings
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.models import policy as policy_lib
from bilevel_jax.models import presets, transformer
from bilevel_jax.weights import opening

Place = Callable[
  [presets.Architecture, types.Tree],
  tuple[jax.sharding.NamedSharding, types.Tree],
]


class Sampler(NamedTuple):
  """A model that can be asked."""

  architecture: presets.Architecture
  policy: types.Policy
  weights: types.Tree  # what `policy.merge` returned
  tokenizer: tokenizer_lib.Tokenizer


def build(
  opened: opening.Opened,
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  dtype: str | None = None,
  place: Place | None = None,
) -> Sampler:
  """Returns a model that was opened, with its weights read.

  Args:
    dtype: of weights and cache; None: as `policy.dtype_of` the device.
    place: from an architecture and the shapes of its base to where rows are
      (`policy.rows`) and where each array is; None: on one device.

  Raises:
    ConfigError: it cannot be read, or its tokenizer does not fit.
  """
  architecture = opened.architecture
  without_token = tokenizer.ids_without_token(architecture.vocab_size)
  rows, places = None, None
  if place is not None:
    shapes = jax.eval_shape(
      functools.partial(transformer.init, architecture=architecture),
      jax.random.key(0),
    )
    rows, places = place(architecture, shapes)
  policy = policy_lib.make(
    architecture,
    compute_dtype=dtype or policy_lib.dtype_of(jax.devices()[0]),
    rows=rows,
    without_token=without_token,
  )
  weights = jax.jit(policy.merge)(opened.read(places), None)
  return Sampler(architecture, policy, weights, tokenizer)


def read_tokenizer(
  opened: opening.Opened, prompt_format: settings.Tokenizer
) -> tokenizer_lib.Tokenizer:
  """Returns the tokenizer of a model that was opened.

  Raises:
    ConfigError: it cannot be read.
  """
  with tempfile.TemporaryDirectory() as scratch:
    return tokenizer_lib.of_settings(
      opened.tokenizer_files(pathlib.Path(scratch)), prompt_format
    )


def prompt_format(
  opened: opening.Opened,
  default: settings.Tokenizer,
  *,
  system: str | None = None,
  template: str | None = None,
) -> settings.Tokenizer:
  """Returns how a prompt is put: as in the run that left the weights.

  Args:
    default: how it is put where they are not of a run.
    system: system message, in place of that one's.
    template: the user's turn, in place of that one's.

  Raises:
    ConfigError: a run's settings cannot be read.
  """
  found = default
  if opened.run is not None:
    path = opened.run / "config.json"
    try:
      given = json_lines.parse(path.read_bytes(), str(path))
      found = settings.Tokenizer(**given["config"]["tokenizer"])
    except (ValueError, LookupError, TypeError) as error:
      raise errors.ConfigError(
        f"{path} must hold a run's settings, got: {error}"
      ) from error
  changes = {"system_prompt": system, "prompt": template}
  return dataclasses.replace(
    found, **{name: text for name, text in changes.items() if text is not None}
  )
