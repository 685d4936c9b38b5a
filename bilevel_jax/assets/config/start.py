"""The defaults, or those of a .json or .yaml file, as a config file."""

from bilevel_jax import config


def get_config(path=None):
  """Returns the defaults with what a file says, such as a run's config.json."""
  return config.default_config() if path is None else config.from_file(path)
