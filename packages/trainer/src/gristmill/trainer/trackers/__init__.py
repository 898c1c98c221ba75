"""Where a run's numbers go. The run folder's events.jsonl is always written; other sinks are a file each."""
