"""Weights of demonstrations from a file: each has its own, or it is told."""

import json

import pytest

from bilevel_jax import errors, types
from bilevel_jax.data import demonstration_weights

QUESTIONS = [
  types.Question(name, f"{name}?", "1", "so 1", {}) for name in ("a", "b")
]


def _file(tmp_path, *lines):
  path = tmp_path / "weights.jsonl"
  texts = [
    line if isinstance(line, str) else json.dumps(line) for line in lines
  ]
  path.write_text("\n".join(texts))  # the last line without its end
  return str(path)


def test_each_demonstration_has_the_weight_of_its_row(tmp_path):
  path = _file(
    tmp_path,
    {"id": "b", "weight": 0, "question": "b?"},
    {"id": "c", "weight": 3},
    {"id": "a", "weight": 1.5, "effect": None},
  )
  assert demonstration_weights.of(QUESTIONS, path) == [1.5, 0.0]


A = {"id": "a", "weight": 1}


@pytest.mark.parametrize(
  ("lines", "said"),
  [
    ([A], "no weight for the demonstration 'b'"),
    ([A, A], "line 2 has the id 'a' of another row"),
    ([A, {"id": "b"}], "at least 0 for 'b', got None"),
    ([A, {"id": "b", "weight": -1}], "at least 0 for 'b', got -1"),
    ([A, {"id": "b", "weight": True}], "at least 0 for 'b', got True"),
    ([A, '{"id": "b", "weight": NaN}'], "at least 0 for 'b', got nan"),
    ([A, '{"id": "b", "weight": 1e999}'], "at least 0 for 'b', got inf"),
    ([A, {"id": "b", "weight": 1, "question": "?"}], "is of other data"),
    ([A, "no JSON"], "line 2 is not JSON"),
  ],
)
def test_what_is_no_weight_is_refused(tmp_path, lines, said):
  path = _file(tmp_path, *lines)
  with pytest.raises(errors.ConfigError, match=said):
    demonstration_weights.of(QUESTIONS, path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match="does not exist"):
    demonstration_weights.of(QUESTIONS, str(tmp_path / "none.jsonl"))
