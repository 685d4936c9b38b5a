"""Killed at random moments and resumed, a run ends with the same bits."""

import pytest

from tests import kill_campaign, processes

KILLS = 20


@pytest.mark.timeout(processes.PATIENCE_S)
def test_kills_at_random_moments_change_no_bit(tmp_path):
  """A checkpoint a step; python -m tests.kill_campaign has more of them."""
  done = kill_campaign.run(tmp_path, KILLS)
  assert done.differences == []
  assert done.kills.total() == KILLS
  assert min(done.kills[moment] for moment in kill_campaign.MOMENTS) > 0
