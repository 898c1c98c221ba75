"""What people look at: one HTML page per run."""
