"""Large models as graders: prompts that cannot be talked over, engines that answer them, grades with their evidence."""
