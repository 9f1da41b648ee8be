/* A tiled group of 16 rows back as floats, row by row. Values are the file format's own to the bit:
 * scale times code is exact in float32 (but for q6_k, rounded once), so one rounding is left. */

/* Four dwords of one row, 64 bytes apart: the row's 16 bytes of a 4-bit block. */
INLINE void row_bytes(const uint8_t *vectors, int count, uint8_t *out)
{
    for (int j = 0; j < count; j++) memcpy(out + 4 * j, vectors + 64 * j, 4);
}

INLINE void row_nibbles(const uint8_t *vectors, uint8_t codes[32])
{
    uint8_t packed[16];
    row_bytes(vectors, 4, packed);
    for (int i = 0; i < 16; i++) codes[i] = packed[i] & 15;
    for (int i = 0; i < 16; i++) codes[16 + i] = packed[i] >> 4;
}

static void unpack_q4(int format, const uint8_t *group, kf_layout at, int blocks, int row, float *out)
{
    float d = 0, m = 0;
    for (int b = 0; b < blocks; b++, out += BLOCK) {
        uint8_t codes[32];
        row_nibbles(group + (size_t)b * 256 + 4 * row, codes);
        float step, low;
        if (format == KF_Q4_K) {
            const uint16_t *super = (const uint16_t *)(group + at.supers) + b / SUPER * 32;
            const uint8_t *s = group + at.scales + (size_t)b * 32;
            if (b % SUPER == 0) d = from_half(super[row]), m = from_half(super[16 + row]);
            step = d * s[row], low = -(m * s[16 + row]);
        } else {
            int wide = format == KF_Q4_1;
            const uint16_t *s = (const uint16_t *)(group + at.scales) + (size_t)b * (wide ? 32 : 16);
            step = from_half(s[row]);
            low = wide ? from_half(s[16 + row]) : -8 * step;
        }
        for (int i = 0; i < BLOCK; i++) out[i] = step * codes[i] + low;
    }
}

static void unpack_q6(const uint8_t *group, kf_layout at, int blocks, int row, float *out)
{
    for (int b = 0; b < blocks; b++, out += BLOCK) {
        uint8_t codes[32], high[8];
        row_nibbles(group + (size_t)b * 256 + 4 * row, codes);
        row_bytes(group + at.high + (size_t)b * 128 + 4 * row, 2, high);
        float d = from_half(((const uint16_t *)(group + at.supers))[b / SUPER * 16 + row]);
        const int8_t *s = (const int8_t *)(group + at.scales) + (size_t)b * 32;
        float step[2] = {d * s[row], d * s[16 + row]};
        for (int i = 0; i < BLOCK; i++) {
            int bits = high[i / 16 * 4 + i % 4] >> i % 16 / 4 * 2 & 3;
            out[i] = step[i / 16] * (float)((codes[i] | bits << 4) - 32);
        }
    }
}

static void unpack_q8(const uint8_t *group, kf_layout at, int blocks, int row, float *out)
{
    for (int b = 0; b < blocks; b++, out += BLOCK) {
        uint8_t codes[32];
        row_bytes(group + (size_t)b * 512 + 4 * row, 8, codes);
        float step = from_half(((const uint16_t *)(group + at.scales))[(size_t)b * 16 + row]);
        for (int i = 0; i < BLOCK; i++) out[i] = step * (float)(codes[i] - 128);
    }
}

static void unpack_row(int format, const uint8_t *group, int cols, int row, float *out)
{
    kf_layout at = kf_group_layout(format, cols);
    const uint8_t *line = group + row * kf_row_bytes(format, cols);
    switch (format) {
    case KF_F32: memcpy(out, line, (size_t)cols * 4); break;
    case KF_F16:
        for (int i = 0; i < cols; i++) out[i] = from_half(((const uint16_t *)line)[i]);
        break;
    case KF_BF16:
        for (int i = 0; i < cols; i++) out[i] = from_bf16(((const uint16_t *)line)[i]);
        break;
    case KF_Q8_0: unpack_q8(group, at, cols / BLOCK, row, out); break;
    case KF_Q6_K: unpack_q6(group, at, cols / BLOCK, row, out); break;
    default: unpack_q4(format, group, at, cols / BLOCK, row, out);
    }
}

static void unpack(int format, const uint8_t *group, int cols, int valid, float *out, size_t stride)
{
    for (int row = 0; row < valid; row++) unpack_row(format, group, cols, row, out + row * stride);
}

static void narrow(const float *in, uint16_t *out, size_t count)
{
    for (size_t i = 0; i < count; i++) out[i] = to_bf16(in[i]);
}
