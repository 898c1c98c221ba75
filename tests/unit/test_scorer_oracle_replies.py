"""An answer that was stored is never asked for again, and nothing that a kill or a bad disk leaves is taken for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gristmill.base.errors import GristmillError, UsageError
from gristmill.scorer.oracle.engine import Reply
from gristmill.scorer.oracle.grade import grade_documents
from gristmill.scorer.oracle.prompt import Prompt, prompts
from gristmill.scorer.oracle.replies import Replies, StoredEngine, key_of
from gristmill.scorer.oracle.tokens import RoughTokenizer
from gristmill.scorer.rubric import rubric_from_mapping

DIMENSION = {"name": "clarity", "question": "How clear?", "anchors": {"0": "jumbled", "4": "clear"}}
RUBRIC = rubric_from_mapping({"name": "r", "dimensions": [DIMENSION, DIMENSION | {"name": "depth"}]}, "test")
KEYS = [f"{number:064x}" for number in range(10)]
FULL = Reply('{"a": "ü"}', {0: -1.5, 4: -0.25}, "ok", {"clarity": {3: -0.5}}, True, 12, 3, 0.125)


class CountingEngine:
    style, tokenizer = "completion", RoughTokenizer()

    def __init__(self, name: str = "counting") -> None:
        self.name, self.asked = name, list[Prompt]()
        self.status = "ok"

    def grade(self, prompts: Sequence[Prompt]) -> list[Reply]:
        self.asked += prompts
        return [Reply("3", status=self.status, prompt_tokens=10, reply_tokens=1, seconds=0.5) for _ in prompts]


class EachCountingEngine(CountingEngine):
    def grade_each(self, prompts: Sequence[Prompt], keep: Callable[[int, Reply], None]) -> None:
        for position, prompt in enumerate(prompts):
            if "stop" in prompt.document:
                raise GristmillError("stopped")
            self.asked.append(prompt)
            keep(position, Reply("3", status="request failed: 500" if "fail" in prompt.document else "ok"))


def test_replies_come_back_as_they_were_put(tmp_path: Path) -> None:
    store = Replies(tmp_path / "deep" / "replies")
    assert not store.folder.exists(), "nothing to keep, nothing written"
    store.put(KEYS[0], FULL)
    store.put_all([(KEYS[1], Reply("x")), (KEYS[2], Reply(""))])
    for opened in (store, Replies(store.folder)):
        assert opened.get(KEYS[0]) == FULL and opened.get(KEYS[1]) == Reply("x") and opened.get(KEYS[9]) is None
    store.close()


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_torn_last_line_is_passed_over_and_the_next_writer_is_not_hurt(tmp_path: Path, cut: int) -> None:
    first = Replies(tmp_path)
    first.put(KEYS[0], FULL)
    first.put(KEYS[1], FULL)
    first.close()
    (path,) = tmp_path.glob("*.jsonl")
    os.truncate(path, path.stat().st_size - cut)
    second = Replies(tmp_path)
    assert second.get(KEYS[0]) == FULL and second.get(KEYS[1]) is None and second.damaged == 0
    second.put(KEYS[1], FULL)
    again = Replies(tmp_path)
    assert again.get(KEYS[1]) == FULL and len(again) == 2


def test_damaged_lines_are_counted_and_asked_again(tmp_path: Path) -> None:
    store = Replies(tmp_path)
    store.put_all([(key, FULL) for key in KEYS])
    store.close()
    (path,) = tmp_path.glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1], lines[2], lines[3] = b"\0" * 50 + b"\n", b'{"key": "00"}\n', lines[3].replace(b'"text"', b'"test"')
    lines[4], lines[5] = b"[]\n", b'{"key": "xx", "reply": {"text": "x"}}\n'
    path.write_bytes(b"".join(lines))
    opened = Replies(tmp_path)
    assert (len(opened), opened.damaged) == (5, 5)


def test_workers_see_what_others_append(tmp_path: Path) -> None:
    one, other = Replies(tmp_path), Replies(tmp_path)
    one.put(KEYS[0], FULL)
    assert other.get(KEYS[0]) is None
    other.put(KEYS[1], FULL)
    one.refresh()
    other.refresh()
    assert other.get(KEYS[0]) == FULL == one.get(KEYS[1])
    assert len(list(tmp_path.glob("*.jsonl"))) == 2, "each writes to a file of its own"


def test_threads_and_processes_write_at_once(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from gristmill.scorer.oracle.engine import Reply
from gristmill.scorer.oracle.replies import Replies
store = Replies(Path(sys.argv[1]))
for number in range(200):
    store.put(f"{int(sys.argv[2]) * 1000 + number:064x}", Reply("x" * number))
"""
    others = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)]) for number in (1, 2)]
    store = Replies(tmp_path)

    def write(number: int) -> None:
        for position in range(100):
            store.put(f"{number * 1000 + position:064x}", Reply("y" * position))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in others] == [0, 0]
    opened = Replies(tmp_path)
    assert (len(opened), opened.damaged) == (800, 0)


def test_a_full_disk_is_one_line_and_leaves_no_half_line_to_append_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Replies(tmp_path)
    store.put(KEYS[0], FULL)
    real = os.write

    def full(file: int, data: bytes) -> int:
        real(file, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(GristmillError, match="No space left on device; mend that, then the same command goes on"):
        store.put(KEYS[1], FULL)
    monkeypatch.setattr(os, "write", real)
    store.put(KEYS[1], FULL)
    opened = Replies(tmp_path)
    assert opened.get(KEYS[1]) == FULL and opened.damaged == 0
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="give a folder"):
        Replies(tmp_path / "file")


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    engine = CountingEngine()
    texts = ["a", "b", "a", "c"]
    first = grade_documents(StoredEngine(engine, Replies(tmp_path)), RUBRIC, texts, 50)
    assert len(engine.asked) == 6, "the same document twice is asked about once"
    stored = StoredEngine(engine, Replies(tmp_path))
    second = grade_documents(stored, RUBRIC, texts, 50)
    assert len(engine.asked) == 6 and second.equals(first), "seconds and tokens too are those of the first time"
    assert (stored.counts.asked, stored.counts.stored) == (0, 6)
    grade_documents(stored, RUBRIC, texts, 50, repeat=1)
    assert len(engine.asked) == 12, "a repeat is asked for"
    grade_documents(stored, RUBRIC, texts, 50, ids=["1", "2", "3", "4"])
    assert len(engine.asked) == 20, "with ids each document is"


def test_key_holds_all_that_an_answer_depends_on() -> None:
    other = rubric_from_mapping({"name": "o", "dimensions": [DIMENSION | {"question": "Is it?"}]}, "test")
    engine = CountingEngine()
    chat: Any = CountingEngine()
    chat.style = "chat"
    (clarity, depth), (json_prompt,) = prompts("text", RUBRIC), prompts("text", RUBRIC, "json")
    asked = [
        (engine, clarity), (engine, depth), (engine, json_prompt), (engine, prompts("text ", RUBRIC)[0]),
        (engine, prompts("text", RUBRIC, "json", 50)[0]), (engine, prompts("text", RUBRIC, "json", order=[1, 0])[0]),
        (engine, prompts("text", RUBRIC, repeat=1)[0]), (engine, prompts("text", RUBRIC, temperature=1.0)[0]),
        (engine, prompts("text", RUBRIC, document_id="d")[0]), (engine, prompts("text", other)[0]),
        (CountingEngine("other model"), clarity), (chat, clarity),
    ]  # fmt: skip
    keys = [key_of(*pair) for pair in asked]
    assert len(set(keys)) == len(keys)
    assert key_of(engine, prompts("text", RUBRIC)[0]) == keys[0]


def test_failed_requests_are_no_answers_and_are_asked_again(tmp_path: Path) -> None:
    engine = CountingEngine()
    grade_documents(StoredEngine(engine, Replies(tmp_path)), RUBRIC, ["a"], 50)
    engine.status = "request failed: HTTP 500"
    stored = StoredEngine(engine, Replies(tmp_path))
    table = grade_documents(stored, RUBRIC, ["a", "b"], 50)
    assert table["status"].to_pylist() == ["ok", "clarity: request failed: HTTP 500"]
    assert (stored.counts.asked, stored.counts.failed, len(Replies(tmp_path))) == (2, 2, 2)
    engine.status = "ok"
    table = grade_documents(StoredEngine(engine, Replies(tmp_path)), RUBRIC, ["a", "b"], 50)
    assert table["status"].to_pylist() == ["ok", "ok"] and len(engine.asked) == 6


def test_replies_that_come_one_by_one_are_stored_one_by_one(tmp_path: Path) -> None:
    engine = EachCountingEngine()
    with pytest.raises(GristmillError, match="stopped"):
        grade_documents(StoredEngine(engine, Replies(tmp_path)), RUBRIC, ["a", "fail", "b", "stop", "c"], 50)
    assert len(engine.asked) == 6 and len(Replies(tmp_path)) == 4
    table = grade_documents(StoredEngine(engine, Replies(tmp_path)), RUBRIC, ["a", "b", "c"], 50)
    assert len(engine.asked) == 8 and set(table["status"].to_pylist()) == {"ok"}


def test_lines_can_be_read_by_eye(tmp_path: Path) -> None:
    Replies(tmp_path).put(KEYS[1], Reply("3", {3: -0.5}, prompt_tokens=9))
    (path,) = tmp_path.glob("*.jsonl")
    value = json.loads(path.read_text())
    reply = value["reply"]
    assert (value["key"], reply["text"], reply["logprobs"], reply["prompt_tokens"]) == (KEYS[1], "3", {"3": -0.5}, 9)
