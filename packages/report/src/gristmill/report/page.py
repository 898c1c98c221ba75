"""One self-contained HTML file: the data as JSON, our script and our style inlined, and nothing that could be fetched.

A content security policy names the two inlined pieces by hash; document text reaches the page as data only.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from gristmill.base.files import write_text
from gristmill.report.live_run import LiveRun
from gristmill.report.questions import at_first
from gristmill.report.run_folder import Panel, ReportData, as_json, report_of

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "dom.js",
    "saving.js",
    "tables.js",
    "ask.js",
    "charts.js",
    "workflow_panel.js",
    "data_panels.js",
    "duplicates_panel.js",
    "model_panels.js",
    "curves.js",
    "comparison_panel.js",
    "training_panel.js",
    "routers_panel.js",
    "mixture_panel.js",
    "heads_panel.js",
    "audit_panel.js",
    "desk_panel.js",
    "reading.js",
    "browse_panel.js",
    "contamination_panel.js",
    "shards_panel.js",
    "runs_panel.js",
    "keys.js",
    "app.js",
)  # later ones use earlier ones
REFRESH_SECONDS = 5


def build(run: Path, out: Path | None = None, seed: int = 0) -> Path:
    """Write the page of `run` to `out`, by default RUN/report/index.html, and return where it is.

    Raises:
        UsageError: `run` is no folder.
    """
    target, source = out or run / "report" / "index.html", LiveRun(run, seed)
    write_text(target, render(report_of(source)[0], answers=at_first(source)))
    return target


def render(data: ReportData, live: bool = False, key: str = "", answers: Sequence[Panel] = ()) -> str:
    """The page of a run as text: of the run `key`, where it is served among others. `answers` is of a page that is a
    file: see questions.at_first."""
    held = {**dataclasses.asdict(data), "answers": list(answers)}
    return _page(str(data.overview["name"]), "run", held, live, key)


def render_folder(listed: Panel, live: bool = True) -> str:
    """The page over several runs as text; `listed` is what questions.runs told of them."""
    return _page("all runs", "folder", {"runs": listed, "answers": []}, live, "")


def _page(title: str, kind: str, data: Panel, live: bool, key: str) -> str:
    """A live page may also fetch from the server that it came from, and from nowhere else."""
    pieces = {
        "policy": policy(live),
        "title": _escaped(f"{title} · Gristmill report"),
        "style": style(),
        "script": script(),
        "kind": kind,
        "live": str(REFRESH_SECONDS if live else 0),
        "run": _escaped(key),
        "data": inline_json(as_json(data)),
    }
    # One pass, so that nothing inside the data is taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: pieces[match[1]], _asset("index.html"))


def policy(live: bool = False) -> str:
    """The content security policy: the inlined style and script by their hashes, everything else refused."""
    connect = " connect-src 'self';" if live else ""
    return (
        f"default-src 'none'; script-src '{_hash(script())}'; style-src '{_hash(style())}';{connect} "
        "img-src blob:; base-uri 'none'; form-action 'none'"
    )


def inline_json(text: str) -> str:
    """JSON that can neither end nor open an element or a comment: ASCII, with <, > and & spelt as escapes."""
    if not text.isascii():
        text = json.dumps(json.loads(text))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _escaped(text: str) -> str:
    """Names of folders, and what JSON spells, may be no text that a page could hold."""
    return html.escape(text.encode("utf-8", "replace").decode())


@cache
def script() -> str:
    return "\n" + "\n".join(_asset(name) for name in SCRIPTS)


@cache
def style() -> str:
    return "\n" + _asset("app.css")


def _asset(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
