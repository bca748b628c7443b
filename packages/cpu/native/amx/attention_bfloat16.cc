// Attention of many query rows by TDPBF16PS (attention_tiles.h).
#include "attention_tiles.h"
#include "entries.h"

void amx::attention_bfloat16(const attention_tile *tile) { attention_by_tiles<amx_tiles>(tile); }
