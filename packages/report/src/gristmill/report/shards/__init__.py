"""Packed datasets as they lie on disk, read by their documented format."""
