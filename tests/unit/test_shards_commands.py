"""The commands of shards: inspect, verify, plan, pull, explain, their exit codes, and what they print."""

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pytest
from tests.support.published_shards import (
    MIXTURE,
    NAMES,
    documents,
    first,
    flip,
    info,
    made,
    published,
    run,
    tokenizer,
    tree,
)

from gristmill.base import cli as base_cli
from gristmill.base.errors import DataError
from gristmill.shards.mixture import load_mixture
from gristmill.shards.reader import open_dataset
from gristmill.shards.resolve import plan
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

__all__ = ["made", "published", "tokenizer"]  # fixtures


def test_numbers_of_tokens() -> None:
    given = {"1_000_000": 10**6, "7": 7, "1B": 10**9, "250m": 250 * 10**6, "1.5T": 15 * 10**11, "2k": 2000}
    assert {text: base_cli.parse_tokens(text) for text in given} == given
    for wrong in ("", "1.5", "-3", "1e9", "B", "1 B", "1.23456K", "inf"):
        with pytest.raises(ValueError, match="no number of tokens"):
            base_cli.parse_tokens(wrong)


def test_inspect_and_verify(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(published)) == 0
    out = capsys.readouterr().out
    assert "train tokens" in out and "mixtures: all" in out and "partial" not in out
    assert run("inspect", str(published), "--json") == 0
    about = json.loads(capsys.readouterr().out)
    held = {row["source"]: row["train_documents"] + row["valid_documents"] for row in about["sources"]}
    assert held == {"a": 20, "b": 20} and about["dtype"] == "u16" and about["partial"] is None
    assert run("verify", str(published)) == 0
    assert f"all {len(tree(published)) - 2} files" in capsys.readouterr().out
    victim = first(published, "sources/b/tokens/000/*")
    flip(victim)
    assert run("verify", str(published)) == 3
    assert str(victim) in capsys.readouterr().err
    assert run("push", str(published), str(published.parent / "x")) == 3
    assert run("verify", str(published / "nowhere")) == 3


def test_pull_of_a_mixture_and_what_is_said_of_a_partial_dataset(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back = str(tmp_path / "back")
    budget = ("--mixture", "all", "--tokens", "4K", "--sequence-length", "64")
    assert run("pull", published.as_uri(), back, *budget) == 0
    assert "the rest is fetched" in capsys.readouterr().out
    assert run("inspect", back) == 0
    out = capsys.readouterr().out
    dataset = open_dataset(back)
    here = len(list(Path(back).rglob("*.u16")))
    shards = sum(len(split.shards) for source in dataset.sources.values() for split in source.splits.values())
    assert (
        f"partial: {here} of {shards} shards are here" in out and published.as_uri() in out and "mixtures: all" in out
    )
    assert run("inspect", back, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert sum(row["shards_here"] for row in about["sources"]) == here
    assert 0 < about["partial"]["bytes_here"] < about["partial"]["bytes"]
    assert run("verify", back) == 0
    assert "are not here yet" in capsys.readouterr().out
    assert run("pull", published.as_uri(), back, "--mixture", "al", *budget[2:]) == 2
    assert "did you mean 'all'" in capsys.readouterr().err
    assert run("pull", published.as_uri(), back, "--tokens", "1B") == 2
    assert run("pull", published.as_uri(), back, "--mixture", "all") == 2
    assert run("push", str(published)) == 2
    assert run("push", str(published), str(tmp_path / "x"), "--repo", "org/name") == 2
    assert run("push", str(published), "--repo", "no/such/name") == 2
    assert run("pull", published.as_uri(), back) == 0
    assert tree(Path(back)) == tree(published)


PHASES = """[mixture]
name = "phases"
longest_sequence = 128
target_tokens = 1_000_000
on_exhausted = "repeat"
[mixture.weights]
"*" = 1
[[mixture.phase]]
name = "long"
from_share = 0.2
sequence_length = 128
"""


def test_plan_and_pull_take_all_that_decides_what_a_run_reads(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = tmp_path / "phases.toml"
    mixture.write_text(PHASES)
    budget = ("--mixture", str(mixture), "--tokens", "100K", "--sequence-length", "32")
    dataset = open_dataset(published)
    for more, repetition, align in (
        ((), False, 1),
        (("--batch-tokens", "65536"), False, 2**16),
        (("--match-repetition", "--batch-tokens", "65536"), True, 2**16),
    ):
        asked = plan(load_mixture(mixture), dataset, 32, tokens=100_000, match_repetition=repetition, align=align)
        capsys.readouterr()
        assert run("plan", str(published), *budget, *more, "--json") == 0
        assert json.loads(capsys.readouterr().out)["sha256"] == asked.sha
        back = tmp_path / f"back{align}{repetition}"
        assert run("pull", str(published), str(back), *budget, *more) == 0
        expected = {
            dataset.skeleton.prefix(name) + "/" + dataset.sources[name].split("train").shards[i].tokens.path
            for name, numbers in asked.touched().items()
            for i in numbers
        }
        assert {path for path in tree(back) if path.endswith(".u16") and "/valid/" not in path} == expected
    assert run("plan", str(published), *budget, "--batch-tokens", "0") == 2
    assert run("pull", str(published), str(back), "--batch-tokens", "4K") == 2
    assert "give that too" in capsys.readouterr().err


def test_numbers_and_names_beyond_all_measure_are_refused_in_one_line(
    published: Path, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str, code: int = 2) -> str:
        assert run(*arguments) == code
        (line,) = capsys.readouterr().err.splitlines()
        return line

    planned = ("plan", str(published), "--mixture", "all", "--sequence-length", "64", "--tokens")
    for number in ("-1", "62", str(2**63), str(10**30)):
        assert f"--sequence {number}: the plan has 62, from 0" in said(*planned, "4K", "--sequence", number)
    assert run(*planned, "4K", "--sequence", "61") == 0
    capsys.readouterr()
    for tokens in ("9" * 20, "99999999T", "9" * 5000):
        with pytest.raises(SystemExit) as ended:
            run(*planned, tokens)
        assert ended.value.code == 2 and "more than 2**62 tokens" in " ".join(capsys.readouterr().err.split())
    chat = tmp_path / "a.jsonl"
    chat.write_text("{}")
    given = ("import", str(chat), "--tokenizer", str(tokenizer))
    for output in (chat, chat / "below"):
        assert f"--output {output}: {chat} is a file" in said(*given, "--source", "x", "--output", str(output))
    for name in ("x" * 100, "x\n", "x\ny"):
        assert "source name 'x" in said(*given, "--output", str(tmp_path / "out"), "--source", name)
    assert not (tmp_path / "out/sources").exists()


def test_what_a_manifest_says_cannot_write_on_the_terminal(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "MIT\x1b]0;title\x07\n\u202eall is well"
    write_source(
        tmp_path / "x", SourceSpec("a", info(tokenizer), licence=evil), [documents(tokenizer, NAMES[:20])], ramp=()
    )
    (tmp_path / "all.toml").write_text(MIXTURE)
    write_manifest(tmp_path / "x", [tmp_path / "all.toml"], tokenizer)
    assert run("inspect", str(tmp_path / "x")) == 0
    assert run("plan", str(tmp_path / "x"), "--mixture", "all", "--tokens", "4K", "--sequence-length", "64") == 0
    out = capsys.readouterr().out
    assert r"MIT\x1b]0;title\x07\n\u202eall" in out and all(char.isprintable() for char in out.replace("\n", ""))

    def fails() -> None:
        raise DataError(f"x: {evil}")

    assert base_cli.guarded("shards", fails) == 3
    assert capsys.readouterr().err == "shards: x: MIT\\x1b]0;title\\x07\\n\\u202eall is well\n"


def test_explain_leads_back_to_the_document(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = open_dataset(published).sources["a"].split("train")
    assert len(split.shards) > 1
    offset = 0
    for document in split.documents():
        for within in (0, len(document.tokens) - 1):
            assert run("explain", str(published), "a", str(offset + within), "--json") == 0
            answer = json.loads(capsys.readouterr().out)
            assert (answer["id"], answer["offset_in_document"]) == (document.id, within)
            assert answer["row"] == NAMES.index(document.id) and answer["file"] == "topics.jsonl"
            assert answer["token_id"] == int(document.tokens[within])
            assert answer["score"] == pytest.approx(len(document.id) / 10)
            text = topics[document.id]
            before, after = ("", text[1:25]) if not within else (text[-24:], "")
            assert (answer["before"], answer["after"]) == (before, after)
            assert answer["text"] == (text[0] if not within else "<|endoftext|>")
        offset += len(document.tokens)
    assert run("explain", str(published), "a", str(offset)) == 2
    capsys.readouterr()
    assert run("explain", str(published), "c", "0") == 2
    assert "known: a, b" in capsys.readouterr().err


def test_explain_shows_all_columns_and_no_control_character_of_a_document(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "a\x1b]0;title\x07\x9b2J\n\u202eb\u2028\U000e0041 é"
    table = documents(tokenizer, [evil], url=pa.array([evil]), text=pa.array([1.5]))
    spec = SourceSpec("a", info(tokenizer), columns={"url": "string", "text": "float32"})
    write_source(tmp_path, spec, [table])
    write_manifest(tmp_path, tokenizer=tokenizer)
    for options in ((), ("--json",)):
        assert run("explain", str(tmp_path), "a", "0", *options) == 0
        out = capsys.readouterr().out
        assert out.isprintable() or all(char.isprintable() for char in out.replace("\n", ""))
        assert "url" in out and "meta.text" in out and "title" in out
    assert json.loads(out)["url"] == evil and json.loads(out)["meta.text"] == 1.5


def test_help_is_light() -> None:
    code = (
        "import sys; sys.argv = ['shards', '--help']\n"
        "from gristmill.shards import cli\n"
        "try: cli.main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'pyarrow', 'torch', 'numpy', 'huggingface_hub', 'fsspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "explain" in done.stdout
