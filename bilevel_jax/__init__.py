"""bilevel_jax: supervised fine-tuning and reinforcement learning at once."""

__version__ = "0.1.0"
