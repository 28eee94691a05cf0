"""Peers: real installs in environments of their own, each behind an adapter that its own Python runs."""
