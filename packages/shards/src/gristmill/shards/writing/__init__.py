"""How a source is written: documents are spooled, laid out in shards, and built. `writer` is the way in."""
