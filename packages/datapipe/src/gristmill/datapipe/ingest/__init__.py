"""Raw corpora into documents: one file per input kind, everything unreadable into quarantine."""
