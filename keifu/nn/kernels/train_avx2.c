/* Training kernels with AVX2 and FMA. */
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define KF_ISA 1
#define KF_TABLE kf_train_avx2
#include "train_isa.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
