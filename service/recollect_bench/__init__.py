"""The benchmark: named, seeded workloads, each beside its recall, its limit and its peers, in one run."""
