/* All kernels for one instruction set: included once by each isa_*.c, which names it. */
#include "activations.h"
#include "ops.h"
#include "unpack.h"
#include "linear.h"
#include "rowops.h"
#include "tiles_of_state.h"
#include "attend.h"
#include "attend_tiles.h"
#include "attend_rows.h"
#include "attention.h"
#include "scans.h"
#include "recurrences.h"
#include "draw.h"

const kf_isa KF_TABLE = {
    KF_NAME,
    {
        [KF_EMBED] = embed, [KF_NORM] = norm, [KF_QUANTISE] = quantise, [KF_LINEAR] = linear,
        [KF_ROTARY] = rotary, [KF_STORE] = keep, [KF_ATTEND] = attend, [KF_MERGE] = merge,
        [KF_ACTIVATE] = activate, [KF_COMBINE] = combine, [KF_SELECT] = choose,
        [KF_FILTER] = filter, [KF_SELECTIVE] = selective, [KF_SSD] = ssd, [KF_LRU] = lru,
    },
    unpack,
    narrow,
    draw,
};
