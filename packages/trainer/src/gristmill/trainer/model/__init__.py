"""The model: a Qwen3-MoE-shaped decoder whose attention, router, experts and precision are one file each."""
