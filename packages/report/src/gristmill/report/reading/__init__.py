"""Documents to read: which ones, what each rule asked of them, their texts in parts, search, clusters and matches."""
