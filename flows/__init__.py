"""The order of tasks and the policy on failure, nothing else."""
