"""Each workload measures one row of the issue's table and says how far from its goal it is."""
