"""`report open` and `report export`: runs as pages that follow them, or a run as one HTML file."""

from __future__ import annotations

import sys
from pathlib import Path

from gristmill.base import cli


def export(run: Path, /, *, html: Path | None = None, seed: int = 0) -> None:
    """Write one HTML file with everything that the run folder tells; it opens without a server.

    Args:
        run: the folder that a pipeline wrote, or `trainer run`
        html: where to write, instead of RUN/report/index.html
        seed: chooses the documents that are shown for reading

    Examples:
        report export runs/demo
        report export runs/demo --html demo.html
    """
    from gristmill.report.page import build

    print(build(run, html, seed))


def open_(folder: Path, /, *, port: int = 0, seed: int = 0) -> None:
    """Serve the pages on 127.0.0.1 and follow the runs while they go on; Ctrl-C ends it.

    Args:
        folder: of one run, that a pipeline or `trainer run` writes or wrote; or one with runs below it
        port: 0 takes a free one
        seed: chooses the documents that are shown for reading

    Examples:
        report open runs/demo
        report open runs --port 8000
    """
    from gristmill.report.server import make_server

    with make_server(folder, port, seed) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("report: stopped", file=sys.stderr)


def main() -> None:
    commands = {"open": cli.typed(open_, "report open"), "export": cli.typed(export, "report export")}
    cli.main("report", commands, "What runs did, on one page each.")
