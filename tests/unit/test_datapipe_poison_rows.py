"""Within one partition: which rows a stage cannot handle is found, with the reason, and no other row changes."""

from __future__ import annotations

import errno
from collections.abc import Mapping

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.poison import BAD, Words, rows

from gristmill.base.errors import GristmillError, UsageError
from gristmill.datapipe.policy import Edit
from gristmill.datapipe.stages.tokens import edited
from gristmill.datapipe.workflow.quarantine import StageFault, annotate, most
from gristmill.datapipe.workflow.stage import Stage


def name_of(row: int) -> str:
    return f"document 'd{row}'"


@settings(max_examples=60)
@given(st.data(), st.integers(1, 350))
def test_rows_at_fault_are_found_and_the_others_are_as_ever(data: st.DataObject, count: int) -> None:
    bad = sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=most(count) + 1)))
    texts = [f"{'word ' * (row % 7)}w{row}" for row in range(count)]
    for row in bad:
        texts[row] += f" {BAD}"
    stage, table = Words(), rows(texts)
    if len(bad) > most(count):
        with pytest.raises(StageFault, match=f"first document 'd{bad[0]}'"):
            annotate(stage, table, {}, name_of)
        return
    result, faults = annotate(stage, table, {}, name_of)
    assert list(faults) == bad
    undisturbed = Words(lambda _text: False).annotate(rows(["" if BAD in text else text for text in texts]), {})
    assert result.equals(undisturbed) and result.schema.equals(undisturbed.schema, check_metadata=True)
    assert sum(stage.calls) <= (4 + len(bad).bit_length()) * count  # one such row: four times the work


def test_a_reason_is_one_line_that_is_the_same_in_every_process_and_safe_to_print() -> None:
    class Loud(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fault(error: BaseException) -> str:
        class Raises(Words):
            def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
                if BAD in table["text"].to_pylist():
                    raise error
                return super().annotate(table, previous)

        return annotate(Raises(lambda _: False), rows(["a", BAD]), {}, name_of)[1][1].reason

    assert (
        fault(ValueError(f"at {object()!r}\nsecond"))
        == "stage 'heuristics' raised ValueError: at <object object at 0x...>"
    )
    assert fault(KeyError("\x1b[31m")) == r"stage 'heuristics' raised KeyError: '\x1b[31m'"
    assert fault(ValueError("\x1b[31m\u202e\ud800")) == r"stage 'heuristics' raised ValueError: \x1b[31m\u202e\ud800"
    assert fault(ValueError()) == "stage 'heuristics' raised ValueError"
    assert fault(Loud()) == "stage 'heuristics' raised Loud"
    assert len(fault(ValueError("x" * 10_000_000))) < 300


def test_a_full_disk_is_no_fault_of_a_row_but_a_name_that_is_too_long_is() -> None:
    class Disk(OSError):
        def __init__(self, message: str) -> None:
            super().__init__(errno.ENOSPC, message)

    with pytest.raises(Disk):
        annotate(Words(kind=Disk), rows(["a", BAD, "b"]), {}, name_of)
    assert list(annotate(Words(kind=OSError), rows(["a", BAD, "b"]), {}, name_of)[1]) == [1]


class PanicException(BaseException):
    """As libraries in Rust raise it."""


def test_a_panic_of_a_library_is_a_fault_of_its_row() -> None:
    assert list(annotate(Words(kind=PanicException), rows(["a", BAD, "b"]), {}, name_of)[1]) == [1]
    with pytest.raises(StageFault, match=r"PanicException: .* \(2 of 2 rows"):
        annotate(Words(kind=PanicException), rows([BAD] * 9), {}, name_of)
    always = Words(lambda text: True, PanicException)
    with pytest.raises(StageFault):
        annotate(always, rows(["a"]), {}, name_of)


def test_a_stage_that_raises_on_all_rows_costs_little_and_names_a_document() -> None:
    stage = Words(lambda text: bool(text))
    with pytest.raises(StageFault) as caught:
        annotate(stage, rows(["a"] * 4096), {}, name_of)
    assert "(42 of 42 rows that were tried alone raise, first document 'd0': it is the stage" in str(caught.value)
    assert str(caught.value).startswith("ValueError: cannot handle") and "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError) and caught.value.__cause__.__traceback__ is not None
    assert sum(stage.calls) < 3 * 4096


@pytest.mark.parametrize(
    "kind", [GristmillError, UsageError, MemoryError, KeyboardInterrupt, ConnectionResetError, TimeoutError]
)
def test_refusals_and_what_the_machine_lacks_are_no_fault_of_a_row(kind: type) -> None:
    stage = Words(kind=kind)
    with pytest.raises(kind):
        annotate(stage, rows(["a", BAD, "b"]), {}, name_of)
    assert stage.calls == [3]


def test_what_no_single_row_explains_fails_as_it_did() -> None:
    class Crowded(Words):
        """Raises on many rows at once, on any of them."""

        def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
            if len(table) > 2:
                raise ValueError("too many at once")
            return super().annotate(table, previous)

    with pytest.raises(ValueError, match="too many at once"):
        annotate(Crowded(), rows(["a"] * 8), {}, name_of)
    with pytest.raises(ValueError, match="too many at once"):
        annotate(Crowded(), rows(["a"] * 7 + [BAD]), {}, name_of)
    empty_too = Words(lambda text: BAD in text or not text)
    with pytest.raises(ValueError, match="cannot handle") as caught:
        annotate(empty_too, rows(["a", BAD]), {}, name_of)
    assert caught.traceback[-1].name == "annotate" and empty_too.calls[0] == 2
    with pytest.raises(ValueError, match="cannot handle"):
        annotate(Words(lambda _text: True), rows(["x"]), {}, name_of)

    class Never(Words):
        def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
            raise IndexError(len(table))

    with pytest.raises(IndexError, match=r"^0$"):
        annotate(Never(), rows([]), {}, name_of)


def test_a_stage_that_loses_rows_is_refused_as_ever() -> None:
    class Loses(Words):
        def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
            return super().annotate(table, previous).slice(1)

    with pytest.raises(GristmillError, match="returned 1 rows for 2"):
        annotate(Loses(), rows(["a", "b"]), {}, name_of)


def test_spans_that_point_into_the_text_go_with_it() -> None:
    class Edits(Stage):
        name, folder, config = "edits", "annotations/edits", None
        requires = ("pii",)

        def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
            if any(BAD in text for text in table["text"].to_pylist()):
                raise ValueError("bad")
            return pa.table({"text": edited(table, previous, [Edit("pii.email", "<EMAIL>")])})

    spans = pa.array([[0, 1], [2, 4], None, [1, 3]], pa.list_(pa.int32()))
    signature = pa.FixedSizeListArray.from_arrays(pa.array(range(8), pa.uint32()), 2)
    previous = {"pii": pa.table({"email": spans, "signature": signature, "n": [1, 2, 3, 4]})}
    result, faults = annotate(Edits(), rows(["abc", f"xy{BAD}", "def", "ghij"]), previous, name_of)
    assert result["text"].to_pylist() == ["<EMAIL>bc", "", "def", "g<EMAIL>j"] and list(faults) == [1]
