"""The SDK: what runs inside a task's pod. Read in this order:

    context     `task()`, `run()`, and the `Task` that they give you
    state       `task.state`: get, set, delete, clear, list, batch
    errors      everything that can be raised, drawn once
    values      what is refused before a round trip
    client      one call, asked until it is answered or patience is over
    connection  token, CA and connections, read anew when they change
    ending      how a task's process ends, and what it leaves for the operator to read
    settings    where all of this is, from the pod's environment

What a task may use is exported by `reattach` itself.
"""
