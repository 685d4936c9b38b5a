"""Questions from files and the hub, and every sentence that refuses them."""

import gzip
import hashlib
import json

import pytest

from bilevel_jax import config, errors, types
from bilevel_jax.data import corpora
from tests import public_data

ROW = {"question": "1+1", "answer": "2"}


@pytest.fixture
def write(tmp_path):
  def to_file(*rows, name="sums.jsonl"):
    path = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)

  return to_file


ID = hashlib.blake2b(b"1+1", digest_size=8).hexdigest()


def _load(path, needs_answers=(), **given):
  return corpora.load(config.Source(path=path, **given), needs_answers)


def test_a_row_needs_only_a_question_and_an_answer(write):
  assert _load(write(ROW, "", ROW)) == [
    types.Question(ID, "1+1", "2", None, {}),
    types.Question(f"{ID}-2", "1+1", "2", None, {}),
  ]


def test_every_field_is_read_and_the_rest_is_meta(write):
  row = ROW | {
    "id": 7,
    "answer": 2.5,
    "solution": "so",
    "source": "me",
    "meta": {"level": 3},
  }
  assert _load(write(row)) == [
    types.Question("7", "1+1", "2.5", "so", {"source": "me", "level": 3})
  ]


def test_null_and_empty_solutions_are_none(write):
  rows = [ROW | {"solution": None}, ROW | {"solution": ""}]
  assert [question.solution for question in _load(write(*rows))] == [None, None]


def test_fields_are_mapped(write):
  row = {"problem": "1+1", "final": "2", "steps": "so", "question": "unused"}
  fields = {"question": "problem", "answer": "final", "solution": "steps"}
  (question,) = _load(write(row), fields=fields)
  assert question[1:4] == ("1+1", "2", "so")
  assert question.meta == row  # a reward may ask for any of them


def test_gsm8k_own_format_has_its_answer_behind_four_hashes(write):
  row = {"question": "How many?", "answer": "1+1 = 2\n#### 2"}
  (question,) = _load(write(row), fields={"solution": "answer"})
  assert question[1:4] == ("How many?", "2", "1+1 = 2\n#### 2")
  (untold,) = _load(write(row))
  assert untold._replace(meta=question.meta) == question


def test_an_answer_is_not_replaced_by_what_is_behind_four_hashes(write):
  (question,) = _load(write(ROW | {"solution": "#### 9"}))
  assert question.answer == "2"


def test_compressed_files_are_told_by_their_content(tmp_path):
  for name in ("sums.jsonl.gz", "sums"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(json.dumps(ROW).encode()))
    assert [q.id for q in _load(str(path))] == [ID]


def test_an_id_is_of_the_question_and_not_of_its_file(write):
  other = ROW | {"question": "1+2"}
  first = _load(write(ROW, other, name="q.jsonl"))
  second = _load(write(other, ROW, name="s.jsonl"))
  ids = lambda questions: {q.question: q.id for q in questions}
  assert ids(first) == ids(second)
  assert len({q.id for q in first}) == 2


@pytest.mark.parametrize("between", [(), (ROW,)])
def test_an_id_that_two_rows_have_is_refused(write, between):
  twice = ROW | {"id": "x"}
  message = f"line {2 + len(between)} has the id 'x' of .*line 1: ids must"
  with pytest.raises(errors.ConfigError, match=message):
    _load(write(twice, *between, twice | {"question": "1+2"}))


def test_an_id_may_not_be_the_hash_of_another_row(write):
  with pytest.raises(errors.ConfigError, match="ids must differ"):
    _load(write(ROW, ROW | {"id": ID, "question": "2+2"}))


@pytest.mark.parametrize("missing", ["NaN", "Infinity", "-Infinity", "null"])
def test_json_that_is_no_number_is_a_missing_value(write, missing):
  row = '{"question": "1+1", "answer": "2", "solution": %s, "id": %s}'
  (question,) = _load(write(row % (missing, missing)))
  assert question == types.Question(ID, "1+1", "2", None, {})
  for field in ("question", "answer"):
    broken = json.dumps(ROW | {field: "here"}).replace('"here"', missing)
    with pytest.raises(
      errors.ConfigError, match=f"no value in the field '{field}'"
    ):
      _load(write(broken), needs_answers=["math"])


def test_a_byte_order_mark_is_no_text(tmp_path):
  path = tmp_path / "bom.jsonl"
  path.write_bytes(json.dumps(ROW).encode("utf-8-sig"))
  assert [q.id for q in _load(str(path))] == [ID]
  path.write_bytes(gzip.compress(json.dumps(ROW).encode("utf-8-sig")))
  assert [q.id for q in _load(str(path))] == [ID]


@pytest.mark.parametrize("end", ["\r", "\u2028", "\x85"])
def test_only_a_newline_ends_a_line(tmp_path, end):
  """Others may stand inside of a text, as they are."""
  path = tmp_path / "ends.jsonl"
  text, space = ("+", end) if end == "\r" else (end, " ")
  row = '{"question": "TEXT",SPACE"answer": "2"}\r\n'
  row = row.replace("TEXT", text).replace("SPACE", space)
  path.write_bytes((2 * row).encode())
  assert [q.answer for q in _load(str(path))] == ["2", "2"]


def test_slices(write):
  path = write(*[ROW | {"id": str(i)} for i in range(6)])
  ids = lambda **given: "".join(q.id for q in _load(path, **given))
  assert ids() == "012345"
  assert ids(first=4) == "45"
  assert ids(count=2) == "01"
  assert ids(first=3, count=3) == "345"


def test_lines_after_the_slice_are_not_read(write):
  assert len(_load(write(ROW, "not JSON"), count=1)) == 1


@pytest.mark.parametrize(
  ("rows", "given", "sentence"),
  [
    ([], {}, "{path} has no examples"),
    (["", " "], {}, "{path} has no examples"),
    (
      [ROW, "{"],
      {},
      "{path} line 2 is not JSON: Expecting property name enclosed in double "
      "quotes: line 1 column 2 (char 1)",
    ),
    (["[1]"], {}, "{path} line 1 must be a JSON object, got a list"),
    (
      [ROW, {"question": "1+1", "solution": "2"}],
      {},
      "{path} line 2 lacks the field 'answer', which math needs, it has "
      "question, solution (`fields` maps our names to theirs)",
    ),
    (
      [{"answer": "2"}],
      {},
      "{path} line 1 lacks the field 'question', it has answer "
      "(`fields` maps our names to theirs)",
    ),
    (
      [ROW],
      {"fields": {"solution": "steps"}},
      "{path} line 1 lacks the field 'steps', it has question, answer "
      "(`fields` maps our names to theirs)",
    ),
    (
      [ROW | {"answer": [2]}],
      {},
      "{path} line 1: field 'answer' must be text or a number, got a list",
    ),
    (
      [ROW],
      {"fields": {"problem": "question"}},
      "fields maps id, question, answer, solution, prompt, completion, "
      "messages, system, tools, chat_template_kwargs, weight to a field of the "
      "data, got 'problem'",
    ),
    (
      [ROW],
      {"first": 1},
      "{path} has 1 examples, but first is 1 and count is at least one",
    ),
    (
      [ROW, ROW],
      {"first": 1, "count": 2},
      "{path} has 2 examples, but first is 1 and count is 2",
    ),
  ],
  ids=lambda given: str(given)[:50],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(
  write, rows, given, sentence
):
  path = write(*rows)
  with pytest.raises(errors.ConfigError) as error:
    _load(path, needs_answers=["math"], **given)
  assert str(error.value) == sentence.replace("{path}", path)


def test_a_missing_file_is_refused():
  with pytest.raises(errors.ConfigError, match="nowhere does not exist"):
    _load("nowhere")


def test_binary_and_broken_files_are_refused(tmp_path):
  path = tmp_path / "data"
  path.write_bytes(b"\xff\xfe\x00")
  with pytest.raises(errors.ConfigError, match="is not UTF-8 text"):
    _load(str(path))
  path.write_bytes(gzip.compress(json.dumps(ROW).encode() * 99)[:-20])
  with pytest.raises(errors.ConfigError, match="cannot be read"):
    _load(str(path))


def test_a_source_of_nothing_is_refused():
  with pytest.raises(errors.ConfigError, match="needs one of path, hub, task"):
    corpora.load(config.Source())


def test_a_task_is_a_source():
  source = config.Source(
    task="arithmetic",
    first=3,
    count=2,
    seed=1,
    split="test",
    task_options={"steps": 2},
  )
  questions = corpora.load(source)
  assert [q.id for q in questions] == [
    "arithmetic-test-1-3",
    "arithmetic-test-1-4",
  ]
  assert all(q.meta == {"steps": 2, "kind": "worked"} for q in questions)


@pytest.mark.parametrize("form", ["dict", "split", "files"])
def test_local_hugging_face_directories_are_read(tmp_path, monkeypatch, form):
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  rows = [ROW | {"answer": i, "level": "easy"} for i in range(3)]
  split = datasets.Dataset.from_list(rows)
  path = tmp_path / "sums"
  if form == "dict":
    datasets.DatasetDict({"validation": split}).save_to_disk(path)
  elif form == "split":
    split.save_to_disk(path)
  else:
    path.mkdir()
    split.to_json(path / "validation.jsonl")
  source = config.Source(hub=str(path), split="validation", first=1)
  assert corpora.load(source) == [
    types.Question(ID, "1+1", "1", None, {"level": "easy"}),
    types.Question(f"{ID}-2", "1+1", "2", None, {"level": "easy"}),
  ]


def test_a_hub_id_is_loaded_with_its_name_and_split(monkeypatch):
  datasets = pytest.importorskip("datasets")
  asked = []

  def load_dataset(*arguments, **named):
    asked.append((arguments, named))
    return [{"question": "1+1", "answer": "two\n#### 2"}]

  monkeypatch.setattr(datasets, "load_dataset", load_dataset)
  source = config.Source(
    hub="openai/gsm8k",
    name="main",
    split="test",
    fields={"solution": "answer"},
  )
  assert corpora.load(source) == [
    types.Question(ID, "1+1", "2", "two\n#### 2", {"answer": "two\n#### 2"})
  ]
  assert asked == [
    (("openai/gsm8k", "main"), {"split": "test", "revision": None})
  ]


def test_a_hub_failure_is_one_sentence(monkeypatch):
  datasets = pytest.importorskip("datasets")

  def load_dataset(*arguments, **named):
    raise ConnectionError("no route\nto the hub")

  monkeypatch.setattr(datasets, "load_dataset", load_dataset)
  with pytest.raises(errors.ConfigError) as error:
    corpora.load(config.Source(hub="a/b"))
  assert str(error.value) == (
    "data set a/b (name None, split train) cannot be loaded: ConnectionError: "
    "no route to the hub"
  )


@pytest.mark.parametrize(
  ("name", "count", "solved"),
  [
    ("train/svamp_1000.jsonl", 1000, 1000),
    ("train/gsm8k_train.jsonl.gz", 7473, 7473),
    ("train/limr_1389.jsonl.gz", 1389, 1389),
    ("eval/amc23_40.jsonl", 40, 0),
  ],
)
def test_shared_corpora_load_as_they_are(name, count, solved):
  path = public_data.path(name)
  questions = _load(str(path))
  assert len(questions) == count
  assert sum(question.solution is not None for question in questions) == solved
  assert len({question.id for question in questions}) == count


def test_a_file_beside_a_hub_id_is_its_copy_with_our_names(tmp_path):
  path = tmp_path / "copy.jsonl"
  path.write_text('{"question": "1+1", "answer": "2", "Answer": "3"}\n')
  source = config.Source(
    path=str(path), hub="some/data", fields={"answer": "Answer"}
  )
  (question,) = corpora.load(source)
  assert question.answer == "2"


def test_a_list_of_answers_is_one_text(tmp_path):
  path = tmp_path / "data.jsonl"
  row = {"question": "q", "final_answer": ["1", "x"]}
  path.write_text(json.dumps(row))
  source = config.Source(path=str(path), fields={"answer": "final_answer"})
  assert corpora.load(source)[0].answer == "1,x"


def test_a_template_makes_other_solutions():
  questions = [
    types.Question("a", "1+1", "2", "1+1=2", {"steps": 1}),
    types.Question("b", "2+1", "3", None, {"steps": 4}),
  ]
  made = lambda template: [
    question.solution for question in corpora.rewritten(questions, template)
  ]
  assert made("<guess>{answer}</guess>{steps}") == [
    "<guess>2</guess>1",
    "<guess>3</guess>4",
  ]
  assert made("{answer}:{solution}") == ["2:1+1=2", None]
  for broken in ("{guess}", "{", "{0}"):
    with pytest.raises(errors.ConfigError, match=r"data.solution .* must use"):
      made(broken)
