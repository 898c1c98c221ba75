"""Readers of what users already have: tokens in other formats, and conversations, as sources of shards."""
