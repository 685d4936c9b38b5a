import jax.numpy as jnp
import numpy as np

from bilevel_jax.rollout import cache
from bilevel_jax.rollout.row_sharding import RowSharding
from tests import tabular


def test_a_moved_cache_has_the_rows_asked_for_and_zeros_after_them():
  old = np.arange(24.0).reshape(3, 4, 2)
  tree = {"k": jnp.array(old.swapaxes(1, 2)), "v": jnp.array(-old[..., 0])}
  rows = np.array([2, 0, 0, 2, 1])
  new = cache.move(
    tree,
    rows,
    7,
    axes={"k": 2, "v": 1},
    row_sharding=RowSharding(None),
  )
  np.testing.assert_array_equal(new["k"][..., :4].swapaxes(1, 2), old[rows])
  np.testing.assert_array_equal(new["v"][:, :4], -old[rows][..., 0])
  assert new["k"].shape == (5, 2, 7)
  assert not new["k"][..., 4:].any()
  assert not new["v"][:, 4:].any()


def test_a_moved_cache_is_freed():
  tree = {"k": jnp.ones((2, 3))}
  cache.move(
    tree,
    np.array([1]),
    3,
    axes={"k": 1},
    row_sharding=RowSharding(None),
  )
  assert tree["k"].is_deleted()


def test_the_axis_of_the_columns_is_found_in_any_order():
  policy = tabular.policy(5)._replace(
    init_cache=lambda rows, columns: (
      jnp.zeros((rows, 2, 3, columns)),
      jnp.zeros((rows, columns, 1)),
    )
  )
  assert cache.column_axes(policy) == (3, 1)


def test_bytes_of_a_row_are_those_of_its_arrays():
  policy = tabular.policy(5)
  assert cache.bytes_per_row(policy, 96) == 4 * 96


class _Device:
  process_index = 0

  def __init__(self, **stats):
    self._stats = stats

  def memory_stats(self):
    return self._stats or None


def test_the_default_is_a_share_of_what_is_free_on_the_fullest_device():
  devices = [
    _Device(bytes_limit=100 << 30, bytes_in_use=40 << 30),
    _Device(bytes_limit=100 << 30, bytes_in_use=50 << 30),
  ]
  assert cache.default_bytes(devices) == 30 << 30


def test_cpus_share_a_quarter_of_their_host(monkeypatch, tmp_path):
  pages = {"SC_PHYS_PAGES": 1 << 24, "SC_PAGE_SIZE": 1 << 12}
  monkeypatch.setattr(cache.os, "sysconf", pages.get)
  limit = tmp_path / "memory.max"
  monkeypatch.setattr(cache, "_CONTAINER_LIMIT", limit)
  assert cache.default_bytes([_Device()] * 4) == 4 << 30
  limit.write_text("max\n")
  assert cache.default_bytes([_Device()] * 4) == 4 << 30
  limit.write_text(f"{16 << 30}\n")
  assert cache.default_bytes([_Device()] * 4) == 1 << 30
