"""Effects: what watches the cluster, asks the planner, and carries out what it says."""
