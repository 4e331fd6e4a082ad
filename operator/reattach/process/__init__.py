"""The operator's process: options, start-up, and the order in which its parts start and stop."""
