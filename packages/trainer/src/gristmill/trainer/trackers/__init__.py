"""Where a run's numbers go. The run folder's events.jsonl is always written, and alone counts; others are a file each.

An adapter's file is named as what --trackers.use calls it, has `Adapter(about)` with write(step, told) and close(), and
imports its package: only those that are asked for are imported.
"""
