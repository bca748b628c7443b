// The same over the plain twin of the tiles, for tests on processors without AMX.
#include "attention_tiles.h"
#include "entries.h"

void amx_emulated::attention_bfloat16(const attention_tile *tile) { attention_by_tiles<plain_tiles>(tile); }
