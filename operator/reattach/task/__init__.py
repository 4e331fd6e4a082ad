"""The SDK: what runs inside a task's pod. Read in this order:

    context     `task()`, `run()`, and the `Task` that they give you
    state       `task.state`: get, set, delete, clear, list, batch
    externaljob what `task.submit_once` returns: wait for it, ask, cancel
    submitting  one run of `submit_once`: ask, submit, store the handle
    ladder      what to do about a job that may have been submitted: pure
    jobs        `task.jobs`: the same steps one by one
    adapter     what an adapter for an external system is
    errors      everything that can be raised, drawn once
    values      what is refused before a round trip
    client      one call, asked until it is answered or patience is over
    connection  token, CA and connections, read anew when they change
    doubt       waiting for an external system that can't be asked
    ending      how a task's process ends, and what it leaves for the operator to read
    settings    where all of this is, from the pod's environment

What a task may use is exported by `reattach` itself.
"""
