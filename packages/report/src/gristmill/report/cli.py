"""`report build` and `report open`: a run folder as one HTML file, or as a page that follows the run."""

from __future__ import annotations

import sys
from pathlib import Path

from gristmill.base import cli


def build(run: Path, /, *, output: Path | None = None, seed: int = 0) -> None:
    """Write one HTML file with everything that the run folder tells; it opens without a server.

    Args:
        run: the folder that a pipeline wrote, or `trainer run`
        output: where to write, instead of RUN/report/index.html
        seed: chooses the documents that are shown for reading

    Examples:
        report build runs/demo
        report build runs/demo --output demo.html
    """
    from gristmill.report.page import build as build_page

    print(build_page(run, output, seed))


def open_(run: Path, /, *, port: int = 0, seed: int = 0) -> None:
    """Serve the page on 127.0.0.1 and follow the run while it goes on; Ctrl-C ends it.

    Args:
        run: the folder that a pipeline writes or wrote, or `trainer run`
        port: 0 takes a free one
        seed: chooses the documents that are shown for reading

    Examples:
        report open runs/demo
        report open runs/demo --port 8000
    """
    from gristmill.report.server import make_server

    with make_server(run, port, seed) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("report: stopped", file=sys.stderr)


def main() -> None:
    commands = {"build": cli.typed(build, "report build"), "open": cli.typed(open_, "report open")}
    cli.main("report", commands, "What a run did with its documents, on one page.")
