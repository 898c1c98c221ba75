"""Duplicates: hashes and MinHash signatures per document, clusters over the whole run."""
