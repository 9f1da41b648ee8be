/* Kernels for x86 with AVX2, FMA and F16C. */
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define KF_ISA 1
#define KF_NAME "avx2"
#define KF_TABLE kf_avx2
#include "isa.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
