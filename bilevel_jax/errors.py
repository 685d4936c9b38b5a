"""What is raised for what a user gave."""


class ConfigError(ValueError):
  """Something that the user gave cannot be used; the message says the rule."""
