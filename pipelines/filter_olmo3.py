#!/usr/bin/env python3
"""Filter a raw pretraining corpus after OLMo 3's recipe, on this machine or on a Ray cluster.

    python pipelines/filter_olmo3.py --input 'raw/*.jsonl.zst' --output runs/olmo3
    ray job submit --working-dir . -- python pipelines/filter_olmo3.py --input /data/raw --output /data/runs/olmo3

The same command again does only what is missing or stale. With --oracle and --backbone a sample is graded and the
quality rule of policies/olmo3_scored.toml applies.
"""

from __future__ import annotations

import sys

from dag import PipelineConfig, build, report, run
from gristmill.base import cli


def main(arguments: list[str]) -> int:
    config = cli.parse_config(PipelineConfig, arguments, "filter_olmo3.py", __doc__ or "")
    ingest, nodes = build(config)
    if run(config, config.output, ingest, nodes, "filter_olmo3", config.workers):
        report(config.output)
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded("filter_olmo3.py", lambda: main(sys.argv[1:])))
