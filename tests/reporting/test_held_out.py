"""Held-out questions before and after: what turned right, what turned wrong."""

import json

from bilevel_jax.reporting import held_out


def _answers(tmp_path, *rows):
  lines = [
    json.dumps(
      {
        "step": step,
        "question_id": name,
        "prompt": f"{name}?",
        "completion": f"<{name}{step}>",
        "answer": "1",
        "correct": correct,
      }
    )
    for step, name, correct in rows
  ]
  (tmp_path / "answers.jsonl").write_text("\n".join([*lines, ""]))


def test_what_changed_is_by_question_and_not_by_place(tmp_path):
  _answers(
    tmp_path,
    *((0, "a", False), (0, "b", True), (0, "c", True), (0, "d", False)),
    *((5, "a", False), (5, "b", True), (5, "c", True), (5, "d", False)),
    *((9, "d", True), (9, "c", False), (9, "b", True), (9, "a", False)),
  )
  found = held_out.changed(tmp_path)
  assert found is not None
  ((before, after),) = found.gained
  assert (before["completion"], after["completion"]) == ("<d0>", "<d9>")
  assert [pair.after["question_id"] for pair in found.lost] == ["c"]
  assert found.counts.endswith("after: 1")
  page = held_out.of_run(tmp_path)
  assert "after: &lt;d9&gt;" in page
  assert page.index('<article class="good">') < page.index("c9")
  assert "a9" not in page


def test_one_evaluation_has_no_change(tmp_path):
  assert held_out.changed(tmp_path) is None
  _answers(tmp_path, (0, "a", False))
  assert held_out.changed(tmp_path) is None
  assert held_out.of_run(tmp_path) == ""
