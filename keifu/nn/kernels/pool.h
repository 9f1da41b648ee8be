/* Threads that work together on one job at a time and sleep when there is none. */
#ifndef KF_POOL_H
#define KF_POOL_H

#include "ops.h"

typedef void (*kf_job)(void *, const kf_worker *);

/* Run `job` on every thread, the caller's among them; returns when all are done. Each thread gets
 * `scratch` floats of its own. Returns 0, or -1 where memory or threads cannot be had. */
int kf_together(kf_job job, void *argument, size_t scratch);

/* Inside a job: wait for all its threads. */
void kf_barrier(const kf_worker *worker);

#endif
