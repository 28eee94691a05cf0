"""The HTTP side: health, metrics, administration."""
