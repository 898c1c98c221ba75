"""On from a trained model: with conversations, or with what a mixture has left."""
