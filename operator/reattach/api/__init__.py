"""Names and shapes that every part of Reattach shares.

No behaviour, no I/O; nothing here imports another layer.
"""
