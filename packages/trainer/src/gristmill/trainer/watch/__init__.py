"""What is looked at while a run trains, and what is done about it."""
