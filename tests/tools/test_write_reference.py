"""The reference pages are what the code says."""

import pytest

from tools import write_reference


@pytest.mark.parametrize(
  ("name", "page"),
  [
    ("settings.md", write_reference.settings),
    ("command_line.md", write_reference.command_line),
  ],
)
def test_the_page_is_up_to_date(name, page):
  said = (write_reference.PAGES / name).read_text()
  assert said == page(), "run python tools/write_reference.py"


def test_a_field_has_its_type_bounds_default_and_meaning():
  page = write_reference.settings()
  assert (
    "| `rl.importance_cap` | number > 0 or None | `2.0` | most that learner / "
    "sampler weighs a token; None: no weight |"
  ) in page
  assert "| `rl.clip` | `objective`, `weight` | `'objective'` |" in page
  assert "| `data.questions.fields` | group | empty |" in page
  assert "| `method.trapo.shares` | list of numbers |" in page


def test_a_method_s_settings_begin_with_what_it_is():
  page = write_reference.settings()
  assert "## `method.hpt`\n\nHPT: each question to RL or SFT, by " in page
  assert "learned from within a trust region (arXiv 2512.17636).\n" in page
