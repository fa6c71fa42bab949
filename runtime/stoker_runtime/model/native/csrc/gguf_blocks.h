// Products with weights that keep a GGUF file's blocks, whatever their types.
//
// A weight is one or more parts, one below the other, whose types may differ: llama.cpp quantizes some values and
// queries to other types than keys. All of a panel's columns are of one part.
#pragma once

#include "gguf_types.h"

namespace STOKER_ELEMENT {

// Call body(Type()) for the struct of GGML's type number; other numbers are refused in Python.
template <class Body>
inline void with_type(int32_t type, const Body& body) {
  switch (type) {
    case 2:
      return body(Q4_0());
    case 3:
      return body(Q4_1());
    case 8:
      return body(Q8_0());
    case 12:
      return body(Q4_K());
    case 14:
      return body(Q6_K());
  }
}

inline int64_t panel_bytes(int32_t type, int64_t num_inputs) {
  int64_t bytes = 0;
  with_type(type, [&](auto form) {
    using Type = decltype(form);
    bytes = num_inputs / (Type::kGroups * kGroup) * Type::kBytes;
  });
  return bytes;
}

inline void pack_blocks(int32_t type, const uint8_t* blocks, int64_t num_outputs, int64_t num_inputs, bool is_pair,
                        char* packed) {
  with_type(type, [&](auto form) {
    using Type = decltype(form);
    const int64_t num_blocks = num_inputs / (Type::kGroups * kGroup);
    for (int64_t panel = 0; panel < packed_panels(num_outputs, is_pair); ++panel) {
      for (int64_t block = 0; block < num_blocks; ++block, packed += Type::kBytes) {
        memset(packed, 0, Type::kBytes);
        for (int lane = 0; lane < kPanel; ++lane) {
          const int64_t row = packed_row(panel, lane, num_outputs, is_pair);
          if (row >= 0) Type::pack(blocks + (row * num_blocks + block) * Type::kFileBytes, packed, lane);
        }
      }
    }
  });
}

// Call visit(input, 16 values) for all inputs of one row of a weight that is no pair.
template <class Visit>
inline void each_value(const StokerPart& part, int64_t num_inputs, int64_t row, const Visit& visit) {
  const char* packed = static_cast<const char*>(part.packed) + row / kPanel * panel_bytes(part.type, num_inputs);
  with_type(part.type, [&](auto form) {
    using Type = decltype(form);
    constexpr int kValues = Type::kGroups * kGroup;
    for (int64_t block = 0; block < num_inputs / kValues; ++block) {
      alignas(64) float values[kValues];
      Type::unpack(packed + block * Type::kBytes, row % kPanel, values);
      for (int i = 0; i < kValues; i += kLanes) visit(block * kValues + i, _mm512_load_ps(values + i));
    }
  });
}

// Bytes that are asked for ahead: panels of 4 bits are short, and the CPU's own guesses begin anew at each.
constexpr int kAhead = 2048;
using TileSums = float[kMaxQuantizedRows][kPanel];

template <class Type, int R>
[[gnu::noinline]] void multiply_rows(TileSums& tile, const QuantizedRow* rows, const char* panel, int64_t num_inputs) {
  __m512 sums[R][2];
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  const int64_t num_blocks = num_inputs / (Type::kGroups * kGroup);
  for (int64_t block = 0; block < num_blocks; ++block, panel += Type::kBytes) {
    for (int i = 0; i < Type::kBytes; i += 64) _mm_prefetch(panel + kAhead + i, _MM_HINT_T0);
    Type::multiply(sums, rows, block, panel);
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < 2; ++c) _mm512_store_ps(tile[r] + c * kLanes, sums[r][c]);
  }
}

[[gnu::noinline]] inline void multiply_tile(int32_t type, TileSums& tile, const QuantizedRow* rows, int num_rows,
                                            const char* panel, int64_t num_inputs) {
  with_type(type, [&](auto form) {
    with_rows<kMaxQuantizedRows>(num_rows, [&](auto count) {
      multiply_rows<decltype(form), decltype(count)::value>(tile, rows, panel, num_inputs);
    });
  });
}

inline const StokerPart& part_of(const StokerLinear& linear, int panel) {
  int index = linear.num_parts - 1;
  while (linear.parts[index].first_panel > panel) --index;
  return linear.parts[index];
}

// One panel for all rows; `row_at` and `finish` as in multiply_quantized_panel.
template <class RowAt, class Finish>
inline void multiply_blocks_panel(const StokerLinear& linear, int panel, const RowAt& row_at, int num_rows,
                                  const Finish& finish) {
  const StokerPart& part = part_of(linear, panel);
  const char* packed = static_cast<const char*>(part.packed) +
                       (panel - part.first_panel) * panel_bytes(part.type, linear.num_inputs);
  const int num_tiles = (num_rows + kMaxQuantizedRows - 1) / kMaxQuantizedRows;
  for (int tile = 0; tile < num_tiles; ++tile) {
    const int begin = static_cast<int>(static_cast<int64_t>(num_rows) * tile / num_tiles);
    const int end = static_cast<int>(static_cast<int64_t>(num_rows) * (tile + 1) / num_tiles);
    QuantizedRow tile_rows[kMaxQuantizedRows];
    for (int row = begin; row < end; ++row) tile_rows[row - begin] = row_at(row);
    alignas(64) TileSums sums;
    multiply_tile(part.type, sums, tile_rows, end - begin, packed, linear.num_inputs);
    for (int row = begin; row < end; ++row) {
      finish(row, _mm512_load_ps(sums[row - begin]), _mm512_load_ps(sums[row - begin] + kLanes));
    }
  }
}

// One panel of a weight whose rows are quantized, be it by quantized.h or by who wrote a GGUF file.
template <class RowAt, class Finish>
inline void multiply_integer_panel(const StokerLinear& linear, int panel, const RowAt& row_at, int num_rows,
                                   const Finish& finish) {
  if (linear.parts != nullptr) {
    multiply_blocks_panel(linear, panel, row_at, num_rows, finish);
  } else {
    multiply_quantized_panel(linear, panel, row_at, num_rows, finish);
  }
}

inline bool has_integer_products(const StokerModel& model) {
  const auto is_one = [](const StokerLayer& layer) {
    if (layer.qkv.is_quantized || layer.output.is_quantized) return true;
    if (layer.experts != nullptr) return layer.experts->gate_up->is_quantized || layer.experts->down->is_quantized;
    return layer.gate_up.is_quantized || layer.down.is_quantized;
  };
  return model.lm_head.is_quantized || std::any_of(model.layers, model.layers + model.num_layers, is_one);
}

}  // namespace STOKER_ELEMENT
