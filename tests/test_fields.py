"""What a field of the settings is made of."""

import pytest

from bilevel_jax import fields


@pytest.mark.parametrize(
  ("text", "count"),
  [
    ("4GB", 4 * 10**9),
    ("1.5 GiB", 3 * 2**29),
    (" 256mb ", 256 * 10**6),
    ("0MiB", 0),
  ],
)
def test_a_text_is_a_number_of_bytes(text, count):
  assert fields.byte_count(text) == count


@pytest.mark.parametrize(
  "text",
  [
    "",
    "GB",
    "4",
    "8..0GB",
    "-1GB",
    "nanGB",
    "1e9GB",
    "4TB",
    "1.GB",
    "\u0664GB",
  ],
)
def test_what_is_no_number_of_bytes_is_refused(text):
  with pytest.raises(ValueError, match=r"^must be a number with one of MB, GB"):
    fields.byte_count(text)
