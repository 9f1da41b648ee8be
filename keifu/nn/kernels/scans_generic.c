/* Scans in plain C vectors. */
#define KF_ISA 0
#define KF_TABLE kf_scans_generic
#include "scans_isa.h"
