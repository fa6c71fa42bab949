// What does not depend on the element type. Compiled for any x86-64, so that asking what the CPU can do is safe.

#include <stdint.h>

#include <exception>

#include "api.h"
#include "context.h"

extern "C" {

int32_t stoker_supported() {
  __builtin_cpu_init();
  const bool has_f32 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("fma");
  if (!has_f32) return 0;
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") ? 3 : 1;
}

void stoker_struct_sizes(int32_t sizes[9]) {
  const size_t all[] = {sizeof(StokerLinear),   sizeof(StokerExperts), sizeof(StokerLayer),
                        sizeof(StokerModel),    sizeof(StokerSequence), sizeof(StokerStep),
                        sizeof(StokerCache),    sizeof(StokerPick),    sizeof(StokerPart)};
  for (int i = 0; i < 9; ++i) sizes[i] = static_cast<int32_t>(all[i]);
}

StokerContext* stoker_create(int32_t num_threads) {
  try {
    return new StokerContext(num_threads);
  } catch (const std::exception&) {  // std::system_error: a limit on processes
    return nullptr;
  }
}

void stoker_destroy(StokerContext* context) { delete context; }

int64_t stoker_packed_bytes(int64_t num_outputs, int64_t num_inputs, int32_t element_bytes, int32_t is_pair) {
  const int64_t columns = 32, lanes = 16;
  const int64_t panels = is_pair ? (num_outputs / 2 + lanes - 1) / lanes : (num_outputs + columns - 1) / columns;
  return panels * columns * num_inputs * element_bytes;
}

int64_t stoker_quantized_bytes(int64_t num_outputs, int64_t num_inputs, int32_t is_pair) {
  return stoker_packed_bytes(num_outputs, num_inputs, 1, is_pair) / 32 * (32 + 2);  // a float16 for 32 inputs
}

}  // extern "C"
