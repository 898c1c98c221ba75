"""What a document is: the columns of documents/part-*.parquet, written once by ingest and never changed."""

from __future__ import annotations

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("created", pa.string()),
        pa.field("meta", pa.string()),  # everything else that the input row held, as JSON
        pa.field("file", pa.string(), nullable=False),  # provenance: the input file ...
        pa.field("row", pa.int64(), nullable=False),  # ... and its line (from 1), Parquet row (from 0) or WARC offset
    ]
)
