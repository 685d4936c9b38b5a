"""DAPO's soft penalty, at the corners of its three pieces."""

import numpy as np

from bilevel_jax.rewards import overlong


def test_the_penalty_is_that_of_the_paper():
  """L_max 20480 and L_cache 4096, as in DAPO; piece by piece."""
  lengths = np.array([1, 16384, 16385, 18432, 20479, 20480, 30000])
  expected = [0, 0, -1 / 4096, -0.5, -4095 / 4096, -1, -1]
  penalty = overlong.soft_penalty(lengths, longest=20480, interval=4096)
  np.testing.assert_allclose(penalty, expected, atol=1e-7)


def test_an_interval_of_all_tokens_is_a_price_on_each():
  penalty = overlong.soft_penalty(np.arange(9), longest=8, interval=8)
  np.testing.assert_allclose(penalty, -np.arange(9) / 8)
