"""Adapters: how jobs are submitted to the external systems that Reattach knows. See `reattach.task.adapter` for what one must do."""
