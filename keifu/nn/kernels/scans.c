/* Scans: which instruction set runs them. */
#include "scan.h"

extern const kf_scan_kernels kf_scans_generic, kf_scans_avx2, kf_scans_avx512;

/* The best instruction set that the machine has: 0 generic, 1 AVX2, 2 AVX-512. */
int kf_scan_level(void)
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

int kf_scan_size(int what)
{
    const size_t sizes[] = {sizeof(kf_scan), sizeof(kf_filter), sizeof(kf_product)};
    return (int)sizes[what];
}

/* NULL where the range is not within `inner` or the machine lacks the set. */
static const kf_scan_kernels *chosen(int level, int64_t first, int64_t end, int64_t inner)
{
    if (level < 0 || level > kf_scan_level() || first < 0 || end > inner) return NULL;
#if defined(__x86_64__)
    if (level == 2) return &kf_scans_avx512;
    if (level == 1) return &kf_scans_avx2;
#endif
    return &kf_scans_generic;
}

/* 0, or -1 where it is not for these sizes or this machine. */
int kf_selective(const kf_scan *s, int64_t first, int64_t end, int level)
{
    const kf_scan_kernels *kernels = chosen(level, first, end, s->inner);
    if (!kernels || s->states < 1 || s->states > KF_STATES) return -1;
    kernels->selective(s, first, end);
    return 0;
}

/* The same. */
int kf_filtered(const kf_filter *f, int64_t first, int64_t end, int level)
{
    const kf_scan_kernels *kernels = chosen(level, first, end, f->inner);
    if (!kernels || f->taps < 1 || f->taps > KF_TAPS) return -1;
    kernels->filtered(f, first, end);
    return 0;
}

/* The same, of output columns. */
int kf_multiplied(const kf_product *p, int64_t first, int64_t end, int level)
{
    const kf_scan_kernels *kernels = chosen(level, first, end, p->outputs);
    if (!kernels || p->inputs % 16) return -1;
    kernels->multiplied(p, first, end);
    return 0;
}
