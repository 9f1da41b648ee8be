/* Training kernels with AVX-512. */
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif
#define KF_ISA 2
#define KF_TABLE kf_train_avx512
#include "train_isa.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
