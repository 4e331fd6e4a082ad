"""Pure decisions about TaskRuns, without a client, a clock, a framework or a coroutine.

The algorithm and the order of its checks are described in `decide`.
"""
