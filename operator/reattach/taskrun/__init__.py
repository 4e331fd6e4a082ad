"""The TaskRun controller."""
