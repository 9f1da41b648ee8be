/* A tiled group of 16 rows back as floats, row by row. Values are the file format's own to the bit:
 * scale times code is exact in float32 (but for q6_k, rounded once), so one rounding is left. */

typedef uint32_t four __attribute__((vector_size(16))); /* 16 bytes: one row's part of 4 vectors */

INLINE uint32_t dword(const uint8_t *at)
{
    uint32_t bits;
    memcpy(&bits, at, 4);
    return bits;
}

INLINE four row_part(const uint8_t *at)
{
    return (four){dword(at), dword(at + 64), dword(at + 128), dword(at + 192)};
}

/* The 32 codes of a row in a block: bytes, signed for q8_0. */
INLINE void row_codes(const int format, const uint8_t *codes, const uint8_t *high, uint8_t out[32])
{
    four early = row_part(codes), late;
    if (format == KF_Q8_0) {
        early ^= 0x80808080; /* back to signed bytes */
        late = row_part(codes + 256) ^ 0x80808080;
    } else {
        late = early >> 4 & 0x0f0f0f0f;
        early &= 0x0f0f0f0f;
    }
    if (format == KF_Q6_K) {
        const four field = {0, 2, 4, 6};
        early |= (dword(high) >> field & 0x03030303) << 4;
        late |= (dword(high + 64) >> field & 0x03030303) << 4;
    }
    memcpy(out, &early, 16);
    memcpy(out + 16, &late, 16);
}

/* For each of the 16 rows: a value is step * code + low; q6_k has a step for each half instead. */
INLINE void row_scales(const int format, const uint8_t *unit, int b, float *step, float *low)
{
    const kf_unit u = kf_unit_of(format);
    const uint8_t *s = unit + u.scales + b % u.blocks * u.scale;
    const uint16_t *super = (const uint16_t *)(unit + u.supers);
    for (int i = 0; i < GROUP; i += LANES) {
        vf d = half_to_float((format == KF_Q4_K || format == KF_Q6_K ? super : (const uint16_t *)s) + i);
        vf m = {0};
        if (format == KF_Q4_0) m = -8 * d;
        if (format == KF_Q4_1) m = half_to_float((const uint16_t *)s + 16 + i);
        if (format == KF_Q4_K) {
            m = -(half_to_float(super + 16 + i) * from_int(widen_bytes(s + 16 + i)));
            d *= from_int(widen_bytes(s + i));
        }
        if (format == KF_Q6_K) {
            m = d * from_int(widen_signed((const int8_t *)s + 16 + i));
            d *= from_int(widen_signed((const int8_t *)s + i));
        }
        store(step + i, d), store(low + i, m);
    }
}

/* Rows [first, last) of a tiled group. */
INLINE void unpack_tiled(const int format, const uint8_t *group, int cols, int first, int last,
                         float *out, size_t stride)
{
    const kf_unit u = kf_unit_of(format);
    for (int b = 0; b < cols / BLOCK; b++) {
        float step[GROUP], low[GROUP];
        const uint8_t *unit = group + kf_unit_at(&u, b), *block = unit + b % u.blocks * u.code;
        const uint8_t *high = unit + u.high + b % u.blocks * u.bits;
        row_scales(format, unit, b, step, low);
        for (int row = first; row < last; row++) {
            uint8_t codes[32];
            float *to = out + (row - first) * stride + b * BLOCK;
            row_codes(format, block + 4 * row, high + 4 * row, codes);
            for (int i = 0; i < BLOCK; i += LANES) {
                vi q = format == KF_Q8_0 ? widen_signed((const int8_t *)codes + i)
                                         : widen_bytes(codes + i);
                if (format == KF_Q6_K) store(to + i, (i < 16 ? step : low)[row] * from_int(q - 32));
                else store(to + i, step[row] * from_int(q) + low[row]);
            }
        }
    }
}

static void unpack_dense(int format, const uint8_t *group, int cols, int first, int last, float *out,
                         size_t stride)
{
    for (int row = first; row < last; row++, out += stride) {
        const uint8_t *line = group + row * kf_row_bytes(format, cols);
        const uint16_t *halves = (const uint16_t *)line;
        if (format == KF_F32) memcpy(out, line, (size_t)cols * 4);
        else if (format == KF_F16) for (int i = 0; i < cols; i++) out[i] = from_half(halves[i]);
        else for (int i = 0; i < cols; i++) out[i] = from_bf16(halves[i]);
    }
}

#define UNPACK(format)                                                                           \
    static void unpack_##format(const uint8_t *group, int cols, int first, int last, float *out, \
                                size_t stride)                                                   \
    {                                                                                            \
        unpack_tiled(KF_##format, group, cols, first, last, out, stride);                        \
    }
UNPACK(Q4_0) UNPACK(Q4_1) UNPACK(Q8_0) UNPACK(Q4_K) UNPACK(Q6_K)

static void unpack(int format, const uint8_t *group, int cols, int first, int last, float *out,
                   size_t stride)
{
    switch (format) {
    case KF_Q4_0: unpack_Q4_0(group, cols, first, last, out, stride); break;
    case KF_Q4_1: unpack_Q4_1(group, cols, first, last, out, stride); break;
    case KF_Q8_0: unpack_Q8_0(group, cols, first, last, out, stride); break;
    case KF_Q4_K: unpack_Q4_K(group, cols, first, last, out, stride); break;
    case KF_Q6_K: unpack_Q6_K(group, cols, first, last, out, stride); break;
    default: unpack_dense(format, group, cols, first, last, out, stride);
    }
}

static void narrow(const float *in, uint16_t *out, size_t count)
{
    for (size_t i = 0; i < count; i++) out[i] = to_bf16(in[i]);
}
