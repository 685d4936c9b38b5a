"""Lines of JSON, whole and torn."""

import json

import pytest

from bilevel_jax import errors
from bilevel_jax.data import json_lines


def nested(levels):
  return b'{"a": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}\n"


def test_a_torn_last_line_is_left_out_and_any_other_is_refused(tmp_path):
  path = tmp_path / "a.jsonl"
  assert json_lines.whole(path) == []
  first, second = b'{"a": "\xe2\x80\xa8"}\n', b'{"b": 2}\r\n'
  for torn in (b"", b'{"c"', b'{"c": 3}'):
    path.write_bytes(first + second + torn)
    assert json_lines.whole(path) == [
      (first, {"a": "\u2028"}),
      (second, {"b": 2}),
    ]
  for broken, sentence in (
    (b"\n", "line 2 is not JSON: Expecting value"),
    (b"\xff\n", "line 2 is not JSON: 'utf-8' codec can't decode"),
    (b"[1]\n", "line 2 must be a JSON object, got a list"),
    (nested(101), "line 2 must be nested at most 100 levels deep"),
    (nested(500), "line 2 must be nested at most 100 levels deep"),
    (nested(10**6), "line 2 must be nested at most 100 levels deep"),
    (b"[" * 10**6 + b"\n", "line 2 must be nested at most 100 levels deep"),
    (b'{"a": ' * 10**6 + b"\n", "line 2 must be nested at most 100 levels"),
  ):
    path.write_bytes(first + broken + second)
    with pytest.raises(errors.ConfigError, match=sentence):
      json_lines.whole(path)


def test_a_hundred_levels_are_read(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(nested(100))
  ((line, row),) = json_lines.whole(tmp_path / "a.jsonl")
  assert json.dumps(row).encode() + b"\n" == line
