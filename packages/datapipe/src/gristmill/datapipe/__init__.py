"""From raw documents to annotations, a selection and shards, on Ray."""
