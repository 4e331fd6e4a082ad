"""The SDK, which runs inside a task's pod.

Read the modules in this order:

    context         `task()`, `run()`, and the `Task` that they return
    state           `task.state`: get, set, delete, clear, list, batch
    external_job    the return value of `task.submit_once`: wait, status, cancel
    submission      one run of `submit_once` and its states
    resolution      what to do about a job that may have been submitted: pure
    cleanup         a cleanup attempt: cancels the external jobs when the TaskRun ends
    jobs            `task.jobs`: the steps of `submit_once` one by one
    job_client      calls of the state API for external jobs
    client          one call of the state API, with retries
    connection      token, CA and connections, reloaded when they change
    outage          delays and log lines while the external system is unavailable
    termination     SIGTERM, the termination message, and the end of the process
    value_checks    checks of keys and values before they are sent
    settings        the pod's environment
    log             the default handler of the logger `reattach`

A task imports `reattach` itself. `reattach.errors` lists all exceptions; `reattach.adapter` has the
parts of an adapter.
"""
