"""gRPC: conversions, the status table, servicers. Embedded callers go through the same, without a socket."""
