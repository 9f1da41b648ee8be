/* Vectors of LANES floats for the instruction set that the including file has chosen by KF_ISA.
 *
 * Everything is written once on these types; the three sets differ only in the width and in the
 * few functions below that an instruction does much better than plain C. */
#ifndef KF_SIMD_H
#define KF_SIMD_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if KF_ISA == 2
#define LANES 16
#elif KF_ISA == 1
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef int32_t quad __attribute__((may_alias)); /* bytes side by side */

INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vi splat_int(int32_t x) { return x - (vi){0}; }
INLINE vf load(const float *at) { vf v; memcpy(&v, at, sizeof v); return v; }
INLINE void store(float *at, vf v) { memcpy(at, &v, sizeof v); }
/* The first `count` of a vector's floats, zeros behind them; all where there are more. */
INLINE vf load_some(const float *at, int count)
{
    float lanes[LANES] = {0};
    if (count >= LANES) return load(at);
    memcpy(lanes, at, (size_t)count * sizeof(float));
    return load(lanes);
}
INLINE void store_some(float *at, vf v, int count)
{
    if (count >= LANES) store(at, v);
    else memcpy(at, &v, (size_t)count * sizeof(float));
}
INLINE vu load_bits(const void *at) { vu v; memcpy(&v, at, sizeof v); return v; }
INLINE vf from_int(vi v) { return __builtin_convertvector(v, vf); }

#if KF_ISA == 2

INLINE vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf square_root(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
INLINE vf half_to_float(const uint16_t *at)
{
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)at));
}
/* acc + sum of four products in each lane: unsigned bytes of w, signed bytes of x. In assembly, for
 * compilers broadcast x by an instruction of its own, which costs a quarter of a product's time. */
INLINE vi dot4(vi acc, vu w, const quad *x)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*x));
    return acc;
}
INLINE vi widen_bytes(const uint8_t *at)
{
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)at));
}
INLINE vi widen_signed(const int8_t *at)
{
    return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)at));
}
INLINE vu widen_halves(const uint16_t *at)
{
    return (vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)at));
}
INLINE void narrow_signed(int8_t *at, vi v)
{
    _mm_storeu_si128((void *)at, _mm512_cvtepi32_epi8((__m512i)v));
}
INLINE float sum_lanes(vf v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE float max_lanes(vf v) { return _mm512_reduce_max_ps((__m512)v); }
INLINE int32_t sum_whole(vi v) { return _mm512_reduce_add_epi32((__m512i)v); }

#elif KF_ISA == 1

INLINE vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf square_root(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
INLINE vf half_to_float(const uint16_t *at)
{
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const void *)at));
}
/* Bytes of w above 127 would overflow the 16-bit pair sums: wide weights use dot4_wide. */
INLINE vi dot4(vi acc, vu w, const quad *x)
{
    __m256i pairs = _mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(*x));
    return acc + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
INLINE vi dot4_wide(vi acc, vu w, const quad *x)
{
    __m256i even = _mm256_and_si256((__m256i)w, _mm256_set1_epi16(255));
    __m256i odd = _mm256_srli_epi16((__m256i)w, 8);
    __m256i xs = _mm256_set1_epi32(*x);
    __m256i xe = _mm256_srai_epi16(_mm256_slli_epi16(xs, 8), 8), xo = _mm256_srai_epi16(xs, 8);
    return acc + (vi)_mm256_madd_epi16(even, xe) + (vi)_mm256_madd_epi16(odd, xo);
}
INLINE vi widen_bytes(const uint8_t *at)
{
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)at));
}
INLINE vi widen_signed(const int8_t *at)
{
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)at));
}
INLINE vu widen_halves(const uint16_t *at)
{
    return (vu)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)at));
}

#else

INLINE vf larger(vf a, vf b)
{
    vi more = a > b;
    return (vf)(((vi)a & more) | ((vi)b & ~more));
}
INLINE vf square_root(vf x)
{
    for (int i = 0; i < LANES; i++) x[i] = sqrtf(x[i]);
    return x;
}
INLINE vi dot4(vi acc, vu w, const quad *codes)
{
    int32_t x = *codes;
    acc += (vi)(w & 255) * (int8_t)x;
    acc += (vi)(w >> 8 & 255) * (int8_t)(x >> 8);
    acc += (vi)(w >> 16 & 255) * (int8_t)(x >> 16);
    return acc + (vi)(w >> 24) * (int8_t)(x >> 24);
}
INLINE vi widen_bytes(const uint8_t *at)
{
    vi v;
    for (int i = 0; i < LANES; i++) v[i] = at[i];
    return v;
}
INLINE vi widen_signed(const int8_t *at)
{
    vi v;
    for (int i = 0; i < LANES; i++) v[i] = at[i];
    return v;
}
INLINE vu widen_halves(const uint16_t *at)
{
    vu v;
    for (int i = 0; i < LANES; i++) v[i] = at[i];
    return v;
}
INLINE vf half_to_float(const uint16_t *at)
{
    vu v = widen_halves(at), magnitude = (v & 0x7fff) << 13;
    vf scaled = (vf)magnitude * 0x1p112f;
    vu huge = (vu)(magnitude >= (0x7c00u << 13)) & 0x7f800000;
    return (vf)((vu)scaled | huge | (v & 0x8000) << 16);
}

#endif
#if KF_ISA != 1
#define dot4_wide dot4
#endif
#if KF_ISA != 2
INLINE float sum_lanes(vf v)
{
    float lanes[LANES];
    store(lanes, v);
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++) lanes[i] += lanes[i + step];
    return lanes[0];
}
INLINE float max_lanes(vf v)
{
    float lanes[LANES];
    store(lanes, v);
    for (int i = 1; i < LANES; i++) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
    return lanes[0];
}
INLINE int32_t sum_whole(vi v)
{
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}
INLINE void narrow_signed(int8_t *at, vi v)
{
    for (int i = 0; i < LANES; i++) at[i] = (int8_t)v[i];
}
#endif

INLINE vf smaller(vf a, vf b) { return -larger(-a, -b); }
INLINE vf absolute(vf a) { return (vf)((vi)a & 0x7fffffff); }
/* Nearest whole number, for |x| < 2^22: the sum's low mantissa bits are the integer. */
INLINE vi nearest(vf x) { return (vi)(x + 12582912.0f) - 0x4b400000; }

/* e^x - 1 = less * power + (power - 1), power a power of two, less within -0.3 and 0.42; x is
 * clamped to where e^x is a normal number. */
INLINE vf exponential_parts(vf x, vf *power)
{
    vf bounded = larger(smaller(x, splat(88.0f)), splat(-87.0f));
    vi n = nearest(bounded * 1.44269504f);
    vf r = bounded - from_int(n) * 0.693359375f + from_int(n) * 2.12194440e-4f;
    vf p = r * 1.3981999507e-3f + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    *power = (vf)((n + 127) << 23);
    return p * r * r + r;
}
/* e^x within 2e-7 relative; NaN stays NaN. */
INLINE vf exponential(vf x)
{
    vf power, less = exponential_parts(x, &power);
    return (vf)((vi)((less + 1.0f) * power) | (x != x));
}
/* 2^x within 3e-6 relative, for x at most 0; exactly 0 below -125, and NaN stays NaN. */
INLINE vf power_of_two(vf x)
{
    vf bounded = larger(splat(-126.0f), x);
    vi n = nearest(bounded);
    vf r = bounded - from_int(n);
    vf p = r * 1.3333558e-3f + 9.6181291e-3f;
    p = p * r + 5.5504109e-2f;
    p = p * r + 2.4022651e-1f;
    p = p * r + 6.9314718e-1f;
    p = (p * r + 1.0f) * (vf)((n + 127) << 23);
    return (vf)((vi)p & ~(x < -125.0f));
}
/* e^x - 1, as near where it is small. */
INLINE vf exponential_less_one(vf x)
{
    vf power, less = exponential_parts(x, &power);
    return (vf)((vi)(less * power + (power - 1.0f)) | (x != x));
}
INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exponential(-x)); }
INLINE vf hyperbolic_tangent(vf x) { return 1.0f - 2.0f / (exponential(x + x) + 1.0f); }

/* log(1 + e^x) within 2e-7 relative: log(1 + u) is twice the area tangent of u / (2 + u). */
INLINE vf softplus(vf x)
{
    vf u = exponential(-absolute(x)), s = u / (2.0f + u), z = s * s;
    vf p = z * (2.0f / 15) + 2.0f / 13;
    p = p * z + 2.0f / 11;
    p = p * z + 2.0f / 9;
    p = p * z + 2.0f / 7;
    p = p * z + 2.0f / 5;
    p = p * z + 2.0f / 3;
    return larger(splat(0.0f), x) + (p * z * s + 2.0f * s);
}

/* The error function within 1.5e-7 absolute (Abramowitz and Stegun, 7.1.26). */
INLINE vf error_function(vf x)
{
    vf a = absolute(x), t = 1.0f / (1.0f + 0.3275911f * a);
    vf p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = (p * t + 0.254829592f) * t;
    vf y = 1.0f - p * exponential(-a * a);
    return (vf)((vi)y | ((vi)x & (int32_t)0x80000000));
}

INLINE float bits_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
INLINE uint32_t float_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }
/* Round to nearest even; a NaN stays one. */
INLINE uint16_t to_bf16(float f)
{
    uint32_t bits = float_bits(f);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}
INLINE float from_bf16(uint16_t h) { return bits_float((uint32_t)h << 16); }
INLINE float from_half(uint16_t h)
{
    uint32_t magnitude = (h & 0x7fffu) << 13;
    uint32_t bits = float_bits(bits_float(magnitude) * 0x1p112f);
    if ((h & 0x7c00) == 0x7c00) bits |= 0x7f800000;
    return bits_float(bits | (uint32_t)(h & 0x8000) << 16);
}

#endif
