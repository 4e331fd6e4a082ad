"""`kubectl reattach`: what a person asks and answers, with their own kubeconfig and rights.

    application   the commands: flags in, lines and an exit code out
    connection    kubeconfig, context and namespace, as kubectl has them
    situation     one look at a TaskRun: the object, its state, its pods, its events
    holds         what a TaskRun is held for, and the answers that fit (pure)
    story         the whole story of a run (pure), which `explain` shows
    text          how it looks: tables, times, colours (pure)
    entries       people's changes to the state (pure), and their compare-and-set
    following     logs over all attempts, and waiting for the end
    letting_go    the way out: our finalizers taken off

Everything that is pure gets what it needs as arguments, the time too. Only `connection`, `situation`, `entries`, `following`, `letting_go` and
`answering` call the API server, by `reattach.cluster` alone.
"""
