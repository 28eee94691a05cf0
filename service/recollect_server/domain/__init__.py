"""What Recollect is, in NumPy and the standard library: words, bounds, rules and ports. No I/O."""
