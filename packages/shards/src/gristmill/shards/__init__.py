"""The published artifact: tokenised, memory-mapped shards with a manifest, mixtures and a deterministic order."""
