/* Keys and values in 8 bits, as they lie in a pool's pages.
 *
 * A tile is 16 slots; of each head it has 64-byte vectors of codes, 128 added, then a scale a slot. A
 * vector of keys holds four elements of each of the 16 slots, slot by slot, so that a score is a lane
 * and nothing is summed across lanes. One of values holds 16 elements of each of four slots, element
 * by element, so that a sum is a lane. Heads are filled up to whole vectors of values; the same in
 * keifu/nn/forms.py. */

enum {
    TILE = 16,         /* slots */
    MIDDLE = 128,      /* what is added to codes */
    PLANES = 2,        /* 8-bit codes a query or a weight: FINE * the first + the second */
    FINEST = 127 * FINE,
};

/* Elements of a head as they are kept; bytes of a head's tile. */
INLINE int kept_width(int width) { return (width + TILE - 1) / TILE * TILE; }
INLINE size_t tile_bytes(int width) { return (size_t)TILE * kept_width(width) + TILE * sizeof(float); }

/* Where a slot's element lies in its tile. */
INLINE size_t code_at(int values, int wide, int slot, int i)
{
    if (values) return (size_t)(slot / 4 * (wide / TILE) + i / TILE) * 64 + i % TILE * 4 + slot % 4;
    return (size_t)(i / 4) * 64 + slot * 4 + i % 4;
}

/* A head's key or value to its slot of a tile. */
static void keep_codes(const float *in, int width, int values, uint8_t *tile, int slot)
{
    int wide = kept_width(width);
    float most = 0, codes[KF_WIDEST + TILE] = {0};
    for (int i = 0; i < width; i++) {
        float size = fabsf(in[i]);
        most = size > most || size != size ? size : most;
    }
    float scale = most / 127, inverse = most > 0x1p-110f ? 127 / most : 0;
    for (int i = 0; i < width; i++) codes[i] = in[i] * inverse;
    for (int i = 0; i < wide; i += LANES) {
        vi rounded = nearest(load(codes + i)) + MIDDLE;
        for (int l = 0; l < LANES; l++) tile[code_at(values, wide, slot, i + l)] = (uint8_t)rounded[l];
    }
    memcpy(tile + (size_t)TILE * wide + slot * sizeof scale, &scale, sizeof scale);
}

/* Numbers of at most `most` in two planes of codes, one byte each; `totals` of what each plane adds. */
INLINE void to_planes(vf x, float inverse, int8_t *high, int8_t *low, vi *totals)
{
    vi whole = nearest(x * inverse), first = (whole + FINE / 2) >> FINE_BITS;
    vi second = whole - (first << FINE_BITS);
    narrow_signed(high, first);
    narrow_signed(low, second);
    totals[0] += first, totals[1] += second;
}
