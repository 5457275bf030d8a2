"""What changes a model's weights: schedules, optimizer, the step, checkpoints and the loop."""
