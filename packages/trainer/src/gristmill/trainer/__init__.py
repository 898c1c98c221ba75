"""Small mixture-of-experts models, trained from shards, exactly resumable."""
