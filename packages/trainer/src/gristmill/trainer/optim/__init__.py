"""How weights move: one file per optimiser, and learning-rate schedules as pure functions of the step."""
