import numpy as np
import pytest

from bilevel_jax.rollout import sizes


@pytest.mark.parametrize("step", [1, 16, 64])
@pytest.mark.parametrize("per_octave", [1, 2, 4])
def test_a_size_holds_what_it_must_and_wastes_little(step, per_octave):
  for n in range(1, 3000):
    size = sizes.ladder(n, step=step, per_octave=per_octave)
    assert size >= n
    assert size % step == 0
    assert size < max(n * (1 + 1 / per_octave), n + step)
    assert sizes.ladder(size, step=step, per_octave=per_octave) == size


def test_sizes_are_few():
  found = {sizes.ladder(n) for n in range(1, 1025)}
  assert len(found) == 20  # 1, 2, then two for each doubling
  found = {sizes.ladder(n, step=64, per_octave=4) for n in range(1, 4097)}
  assert len(found) == 20


def test_columns_waste_little_and_are_few():
  lengths = np.arange(1, 8193)
  columns = np.array([sizes.columns(n) for n in lengths.tolist()])
  assert (columns >= lengths).all()
  assert (columns[128:] <= lengths[128:] * 1.25).all()
  assert len(np.unique(columns)) <= 36


@pytest.mark.parametrize(
  ("count", "expected"),
  [(0, 1), (1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (9, 12), (13, 16)],
)
def test_the_ladder_has_two_steps_an_octave(count, expected):
  assert sizes.ladder(count) == expected
