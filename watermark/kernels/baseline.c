/* The hot functions for any processor: four lanes, a register of SSE2 or NEON. */
#define LEVEL baseline
#define LANES 4
#include "level.h"
