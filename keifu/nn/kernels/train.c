/* Training kernels: which instruction set runs them, and on how many threads. */
#include <stdatomic.h>

#include "train.h"

extern const kf_train_kernels kf_train_generic, kf_train_avx2, kf_train_avx512;

/* The best instruction set that the machine has: 0 generic, 1 AVX2, 2 AVX-512. */
int kf_train_level(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
        && __builtin_cpu_supports("f16c"))
        return 1;
#endif
    return 0;
}

int kf_train_size(int what)
{
    (void)what;
    return (int)sizeof(kf_given);
}

typedef struct {
    kf_rows run;
    const kf_given *given;
    int64_t items, grain;
    atomic_llong next;
} job;

static void work(void *argument)
{
    job *j = argument;
    for (;;) {
        int64_t first = atomic_fetch_add(&j->next, j->grain);
        if (first >= j->items) return;
        j->run(j->given, first, first + j->grain < j->items ? first + j->grain : j->items);
    }
}

/* `together(function, argument, threads, 0)` is GOMP_parallel of the OpenMP that torch runs on: the
 * same threads, which would otherwise spin beside ours; NULL: this thread alone. */
typedef void (*parallel)(void (*)(void *), void *, unsigned, unsigned);

/* 0, or -1 where there is no such kernel or the machine lacks the set. */
int kf_train_run(int kernel, const kf_given *given, int64_t items, int64_t grain, int level,
                 parallel together, int threads)
{
    if (kernel < 0 || kernel >= KF_KERNELS || level < 0 || level > kf_train_level() || grain < 1)
        return -1;
    const kf_train_kernels *kernels = &kf_train_generic;
#if defined(__x86_64__)
    if (level == 2) kernels = &kf_train_avx512;
    if (level == 1) kernels = &kf_train_avx2;
#endif
    job made = {kernels->of[kernel], given, items, grain, 0};
    if (together && threads > 1 && items > grain) together(work, &made, (unsigned)threads, 0);
    else work(&made);
    return 0;
}
