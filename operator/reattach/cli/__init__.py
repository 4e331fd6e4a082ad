"""`kubectl reattach`: read, resolve, suspend and cancel TaskRuns, with your kubeconfig and rights.

    application     the programs; their exit codes
    commands        the commands: flags in, lines and an exit code out
    state_commands  the commands of `state`
    flags, target   flags that all commands have, and the target that they select
    completion      shell completion
    connection      kubeconfig, context and namespace, as kubectl reads them
    queries         reads: a TaskRun, its state, its pods, its events
    pages           TaskRuns, page by page
    snapshot        all that was read of a TaskRun (pure)
    hold_options    holds, and the resolutions that they take (pure)
    report          content of `explain`, from a snapshot (pure)
    next_steps      sentences about what happens next (pure)
    explain         text of `explain`, from a report (pure)
    run_list        rows of `list`
    text            tables, times, colours (pure)
    resolve         append a resolution
    bulk_resolve    plan the resolutions of many TaskRuns (pure), and append them
    cancel          set spec.cancel
    suspend         set spec.suspend
    wake            set the annotation reattach.dev/wake
    rerun           create a TaskRun from one that has ended
    orphan_cleanup  create a TaskRun that cancels orphaned jobs
    changes         changes of many TaskRuns
    state_edit      changes to keys (pure), and their compare-and-set
    logs_and_wait   logs of all attempts, and `wait`
    attempt_log     log of one attempt
    release         remove our finalizers
    retry           retries of reads and of conflicting writes

Pure modules get all that they need as arguments, also the time. The others call the API server by
`reattach.cluster` only.
"""
