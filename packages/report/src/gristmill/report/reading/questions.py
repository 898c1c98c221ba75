"""What a page asks about documents, duplicates and contamination, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gristmill.report.asked import Asked
from gristmill.report.live_run import LiveRun
from gristmill.report.reading import browse, clusters, contamination, document, funnel

QUESTIONS: dict[str, Callable[[LiveRun, Asked], dict[str, Any]]] = {
    "choices": browse.choices,
    "documents": browse.documents,
    "document": document.document,
    "funnel_by_language": funnel.funnel,
    "clusters": clusters.clusters,
    "cluster": clusters.cluster,
    "difference": clusters.difference,
    "contamination": contamination.contamination,
    "contamination_matches": contamination.matches,
}
AT_FIRST: tuple[tuple[str, dict[str, str]], ...] = (
    ("funnel_by_language", {}),
    ("contamination", {}),
    ("contamination_matches", {"which": "matched"}),
    ("contamination_matches", {"which": "touched"}),
)
