"""What the server tells about itself: metrics, logs and traces, made from the records of domain.telemetry."""
