# On a cluster these run where Snakemake does, and everything else is a job. Without a cluster this file changes nothing.
# A job costs 2.6 s of CPU and the queue's wait, more than they take themselves; what they take does not grow with the
# study: an export of the weights, one scenario to debug, a verdict from a file.
localrules:
    all,
    benchmark,
    export,
    strict,
    compare,
    debug,
    # A whole study of its own, which takes its cores from the command line.
    reproduce,


# What reads all scenarios takes a second and 220 MB at this size, which a head node bears; of more it is a job.
if len(PLAN.study.table.ids) <= 1000:

    localrules:
        steady_state,
        dynamics,
        gradients,
        summary,
        report,
        comparison,
        archive,
        verify,
