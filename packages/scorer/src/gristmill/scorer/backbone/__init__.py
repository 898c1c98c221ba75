"""A frozen language model cut in two, and the states that heads read from it."""
