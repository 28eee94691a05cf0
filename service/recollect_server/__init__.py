"""The Recollect server: memories for attention, held outside the model."""
