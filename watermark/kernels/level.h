/* One level: everything is compiled for LANES lanes, by GCC's and Clang's vector types. */
#include "native.h"

#include <float.h>
#include <math.h>

#include "lanes.h"
#include "chacha.h"
#include "half.h"

#include "bias.h"
#include "pairs.h"
#include "tournament.h"

#define TEXT(x) #x
#define NAME(x) TEXT(x)
const level LEVEL = {NAME(LEVEL), bias_rows, tournament_rows, count_keys, bits_of_pairs};
