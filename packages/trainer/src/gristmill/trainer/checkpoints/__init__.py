"""Where a run can go on: what is written, by whom, and what it may begin with."""
