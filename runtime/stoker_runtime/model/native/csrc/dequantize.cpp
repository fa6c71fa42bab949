// GGML's quantized blocks back to numbers, as ../../dequantize.py has them in every bit: compiled without fused
// multiply-adds, which would leave out a rounding. A block at a time, so nothing but the result goes to memory.
//
// Source: block layouts of ggml's ggml-common.h.

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "api.h"

namespace {

float half(const uint8_t* p) {
  uint16_t bits;
  memcpy(&bits, p, sizeof bits);
  return _cvtsh_ss(bits);
}

struct Q4_0 {
  static constexpr int kBytes = 18, kValues = 32;
  static void decode(const uint8_t* block, float* values) {
    const float scale = half(block);
    for (int i = 0; i < 16; ++i) {
      values[i] = static_cast<float>((block[2 + i] & 15) - 8) * scale;
      values[16 + i] = static_cast<float>((block[2 + i] >> 4) - 8) * scale;
    }
  }
};

struct Q4_1 {
  static constexpr int kBytes = 20, kValues = 32;
  static void decode(const uint8_t* block, float* values) {
    const float scale = half(block), minimum = half(block + 2);
    for (int i = 0; i < 16; ++i) {
      values[i] = static_cast<float>(block[4 + i] & 15) * scale + minimum;
      values[16 + i] = static_cast<float>(block[4 + i] >> 4) * scale + minimum;
    }
  }
};

struct Q8_0 {
  static constexpr int kBytes = 34, kValues = 32;
  static void decode(const uint8_t* block, float* values) {
    const float scale = half(block);
    for (int i = 0; i < 32; ++i) values[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * scale;
  }
};

// 8 sub-blocks of 32; their 6-bit scales and minimums share 12 bytes.
struct Q4_K {
  static constexpr int kBytes = 144, kValues = 256;
  static void decode(const uint8_t* block, float* values) {
    const float scale = half(block), minimum = half(block + 2);
    const uint8_t *low = block + 4, *high = block + 8, *mixed = block + 12;
    for (int group = 0; group < 8; ++group) {
      const int j = group & 3;
      const int scale_code = group < 4 ? low[j] & 63 : (mixed[j] & 15) | (low[j] >> 6 << 4);
      const int minimum_code = group < 4 ? high[j] & 63 : mixed[j] >> 4 | (high[j] >> 6 << 4);
      const float factor = scale * static_cast<float>(scale_code), less = minimum * static_cast<float>(minimum_code);
      const uint8_t* codes = block + 16 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int i = 0; i < 32; ++i)
        values[group * 32 + i] = static_cast<float>(codes[i] >> shift & 15) * factor - less;
    }
  }
};

// Two halves of 128: low 4 bits in 64 bytes, high 2 bits in 32, a scale for each 16 values.
struct Q6_K {
  static constexpr int kBytes = 210, kValues = 256;
  static void decode(const uint8_t* block, float* values) {
    const float scale = half(block + 208);
    for (int part = 0; part < 8; ++part) {
      const uint8_t* low = block + part / 4 * 64 + part % 2 * 32;
      const uint8_t* high = block + 128 + part / 4 * 32;
      const int low_shift = part % 4 / 2 * 4, high_shift = part % 4 * 2;
      for (int i = 0; i < 32; ++i) {
        const int code = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
        const float factor = static_cast<float>(static_cast<int8_t>(block[192 + part * 2 + i / 16])) * scale;
        values[part * 32 + i] = static_cast<float>(code - 32) * factor;
      }
    }
  }
};

void put(const float* values, int count, float* out) { memcpy(out, values, count * sizeof(float)); }

// Rounded to the nearest, ties to even; what is not a number becomes PyTorch's one NaN.
void put(const float* values, int count, uint16_t* out) {
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, values + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    out[i] = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
  }
}

template <class Form, class Out>
void decode_all(const uint8_t* blocks, int64_t num_blocks, Out* out) {
  for (int64_t i = 0; i < num_blocks; ++i) {
    float values[Form::kValues];
    Form::decode(blocks + i * Form::kBytes, values);
    put(values, Form::kValues, out + i * Form::kValues);
  }
}

template <class Out>
int32_t decode_type(int32_t type, const uint8_t* blocks, int64_t num_blocks, Out* out) {
  switch (type) {
    case 2: decode_all<Q4_0>(blocks, num_blocks, out); return 1;
    case 3: decode_all<Q4_1>(blocks, num_blocks, out); return 1;
    case 8: decode_all<Q8_0>(blocks, num_blocks, out); return 1;
    case 12: decode_all<Q4_K>(blocks, num_blocks, out); return 1;
    case 14: decode_all<Q6_K>(blocks, num_blocks, out); return 1;
  }
  return 0;
}

}  // namespace

extern "C" {

int32_t stoker_f32_dequantize(int32_t type, const void* blocks, int64_t num_blocks, void* values) {
  return decode_type(type, static_cast<const uint8_t*>(blocks), num_blocks, static_cast<float*>(values));
}

int32_t stoker_bf16_dequantize(int32_t type, const void* blocks, int64_t num_blocks, void* values) {
  return decode_type(type, static_cast<const uint8_t*>(blocks), num_blocks, static_cast<uint16_t*>(values));
}

}  // extern "C"
