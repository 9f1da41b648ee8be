/* The thread pool: workers spin for about 50 us after a job, then sleep until the next. */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

enum { MOST = 256, SPINS = 2000 };

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* one job at a time */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of those who sleep */
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;

static pthread_t threads[MOST];
static float *scratch[MOST];
static size_t scratch_size[MOST];
static int wanted = 1, running = 1; /* the caller counts */
static int stopping;
static kf_job current;
static void *current_argument;

/* On lines of their own, so that spinning on one does not slow writes to another. */
static _Alignas(128) atomic_uint jobs;
static _Alignas(128) atomic_uint phase;
static _Alignas(128) atomic_int arrived;
static _Alignas(128) atomic_int sleepers;
static struct { _Alignas(128) atomic_llong count; } gone[MOST]; /* pieces of each thread's part */

static void await_change(atomic_uint *word, unsigned old)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old) return;
        PAUSE();
        /* On a busy machine the thread waited for may be queued behind this one. */
        if (i % 64 == 63) sched_yield();
    }
    pthread_mutex_lock(&lock);
    atomic_fetch_add(&sleepers, 1);
    while (atomic_load(word) == old) pthread_cond_wait(&woken, &lock);
    atomic_fetch_sub(&sleepers, 1);
    pthread_mutex_unlock(&lock);
}

static void change(atomic_uint *word)
{
    atomic_fetch_add(word, 1);
    if (atomic_load(&sleepers) == 0) return;
    pthread_mutex_lock(&lock);
    pthread_cond_broadcast(&woken);
    pthread_mutex_unlock(&lock);
}

void kf_barrier(const kf_worker *worker)
{
    if (worker->threads == 1) {
        atomic_store_explicit(&gone[0].count, 0, memory_order_relaxed);
        return;
    }
    unsigned now = atomic_load_explicit(&phase, memory_order_acquire);
    if (atomic_fetch_add(&arrived, 1) == worker->threads - 1) {
        atomic_store(&arrived, 0);
        for (int id = 0; id < worker->threads; id++)
            atomic_store_explicit(&gone[id].count, 0, memory_order_relaxed);
        change(&phase);
    } else {
        await_change(&phase, now);
    }
}

int kf_take(const kf_worker *w, int64_t total, int64_t most, kf_pieces *taken)
{
    for (int i = 0; i < w->threads; i++) {
        kf_worker other = {(w->id + i) % w->threads, w->threads, NULL};
        atomic_llong *count = &gone[other.id].count;
        int64_t first, last;
        kf_share(total, &other, &first, &last);
        if (atomic_load_explicit(count, memory_order_relaxed) >= last - first) continue;
        first += atomic_fetch_add_explicit(count, most, memory_order_relaxed);
        if (first >= last) continue;
        *taken = (kf_pieces){first, first + most < last ? first + most : last};
        return 1;
    }
    return 0;
}

static void work(int id)
{
    kf_worker worker = {id, running, scratch[id]};
    current(current_argument, &worker);
    kf_barrier(&worker);
}

static void *serve(void *argument)
{
    int id = (int)(intptr_t)argument;
    unsigned seen = 0;
    for (;;) {
        await_change(&jobs, seen);
        seen = atomic_load(&jobs);
        if (stopping) return NULL;
        work(id);
    }
}

static void stop(void)
{
    stopping = 1;
    change(&jobs);
    for (int id = 1; id < running; id++) pthread_join(threads[id], NULL);
    for (int id = 1; id < running; id++) free(scratch[id]), scratch[id] = NULL, scratch_size[id] = 0;
    stopping = 0;
    running = 1;
}

/* Threads do not survive a fork: the child begins without any. */
static void forked(void)
{
    pthread_mutex_init(&turn, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&woken, NULL);
    running = 1;
    atomic_store(&arrived, 0);
    atomic_store(&sleepers, 0);
    for (int id = 0; id < MOST; id++) atomic_store(&gone[id].count, 0);
}

static int start(void)
{
    static int watching;
    if (!watching) watching = pthread_atfork(NULL, NULL, forked) == 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the caller's affair */
    atomic_store(&jobs, 0);
    int failed = 0;
    while (running < wanted && !failed) {
        failed = pthread_create(&threads[running], NULL, serve, (void *)(intptr_t)running);
        if (!failed) running++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed ? -1 : 0;
}

static int reserve(size_t floats)
{
    for (int id = 0; id < running; id++) {
        if (scratch_size[id] >= floats) continue;
        free(scratch[id]);
        size_t bytes = (floats * sizeof(float) + 127) / 128 * 128;
        scratch[id] = aligned_alloc(128, bytes);
        scratch_size[id] = scratch[id] ? floats : 0;
        if (!scratch[id]) return -1;
    }
    return 0;
}

int kf_together(kf_job job, void *argument, size_t floats)
{
    pthread_mutex_lock(&turn);
    int failed = 0;
    if (running != wanted) {
        if (running > 1) stop();
        failed = start();
        if (failed) wanted = running;
    }
    if (!failed) failed = reserve(floats);
    if (!failed) {
        current = job, current_argument = argument;
        if (running > 1) change(&jobs);
        work(0);
    }
    pthread_mutex_unlock(&turn);
    return failed;
}

/* Threads for the jobs to come, the caller's among them; returns how many that is. */
int kf_threads(int count)
{
    pthread_mutex_lock(&turn);
    if (count > 0) wanted = count < MOST ? count : MOST;
    int now = wanted;
    pthread_mutex_unlock(&turn);
    return now;
}
