// Packs weights for integer products: see quantized.h and gguf_blocks.h. Beside bfloat16 only, as those are.

#include "api.h"
#include "gguf_blocks.h"

using namespace STOKER_ELEMENT;

extern "C" {

void stoker_bf16_pack_quantized(const float* weight, int64_t num_outputs, int64_t num_inputs, int32_t is_pair,
                                void* packed) {
  pack_quantized(weight, num_outputs, num_inputs, is_pair != 0, static_cast<char*>(packed));
}

int64_t stoker_bf16_blocks_bytes(int32_t type, int64_t num_outputs, int64_t num_inputs, int32_t is_pair) {
  return packed_panels(num_outputs, is_pair != 0) * panel_bytes(type, num_inputs);
}

void stoker_bf16_pack_blocks(int32_t type, const void* blocks, int64_t num_outputs, int64_t num_inputs, int32_t is_pair,
                             void* packed) {
  pack_blocks(type, static_cast<const uint8_t*>(blocks), num_outputs, num_inputs, is_pair != 0,
              static_cast<char*>(packed));
}

}  // extern "C"
