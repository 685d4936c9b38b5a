"""Weights in files: how a model is opened, read and exported.

`weights.open` takes whatever a user may name; the modules are the formats.
"""

from bilevel_jax.weights.opening import Opened as Opened
from bilevel_jax.weights.opening import open as open
from bilevel_jax.weights.opening import untrained as untrained
