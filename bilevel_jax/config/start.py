"""The defaults, or those of a .json or .yaml file, as a config file."""

import ml_collections

from bilevel_jax import config


def get_config(path: str | None = None) -> ml_collections.ConfigDict:
  """Returns the defaults with what a file says, such as a run's config.json.

  Raises:
    ConfigError: as `config.from_file`.
  """
  return config.default_config() if path is None else config.from_file(path)
