// What Python hands over (see ../structs.py, which mirrors these structs field by field) and what it may call.
// Nothing here is owned by the library: every pointer is a tensor or array that the caller keeps alive.
#pragma once

#include <stdint.h>

#pragma GCC visibility push(default)
extern "C" {

// Rows of a weight that keep the blocks of a GGUF file, see gguf_types.h.
struct StokerPart {
  const void* packed;
  int32_t type;  // GGML's number of it
  int32_t first_panel;
};

// A weight that `stoker_*_pack` wrote, and its bias (elements) or null.
struct StokerLinear {
  const void* packed;
  const void* bias;
  int32_t num_inputs;
  int32_t num_outputs;
  int32_t is_quantized;  // to 8 bits, see quantized.h, or in parts
  int32_t num_parts;
  const StokerPart* parts;  // in place of `packed`, or null
};

// A mixture in place of a layer's MLP: see experts.h. Its products have no biases; its router is never quantized.
struct StokerExperts {
  StokerLinear router;          // one output for each expert
  const StokerLinear* gate_up;  // [num_experts], packed as pairs
  const StokerLinear* down;     // [num_experts]
  int32_t num_experts;          // the same for all of a model's mixtures, as is what follows
  int32_t num_per_token;
  int32_t intermediate_size;
  int32_t normalizes_weights;  // those of a token's experts add up to 1
};

struct StokerLayer {
  StokerLinear qkv;
  StokerLinear output;
  StokerLinear gate_up;  // packed as pairs, see product.h
  StokerLinear down;
  const StokerExperts* experts;  // in place of gate_up and down; null where a layer has one MLP
  const void* attention_before;  // RMSNorm weights [E], see has_float_norms; null where the family has none
  const void* attention_behind;
  const void* mlp_before;
  const void* mlp_behind;
  const void* query_norm;  // [H, D] by head, [H * D] by projection, or null
  const void* key_norm;    // [Hkv, D] or [Hkv * D]
  const void* cosines;     // [positions, rotary_dim], or null where nothing is rotated
  const void* sines;       // the same; the first half is negated
  int32_t rotary_dim;
  int32_t window;  // tokens that a token attends to, itself included; 0 for all before it
};

struct StokerModel {
  int32_t num_layers;
  int32_t hidden_size;
  int32_t intermediate_size;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t vocab_size;
  int32_t normalizes_projections;  // query_norm and key_norm span a projection, not a head
  int32_t has_gelu;                // of the MLP's gate; else SiLU
  int32_t has_float_norms;         // all norms' weights are float32, and products with them are rounded once
  float eps;
  float embedding_scale;
  float residual_scale;
  float attention_scale;
  float attention_cap;  // 0: none
  float logits_divisor;
  float logits_cap;  // 0: none
  const void* embedding;
  const void* norm;
  StokerLinear lm_head;
  const StokerLayer* layers;
  const StokerPart* embedding_part;  // in place of `embedding`, or null
};

// One request's share of a step: rows first_row .. of the step's tokens.
struct StokerSequence {
  int32_t first_row;
  int32_t num_tokens;
  int32_t num_computed;
  int32_t first_block;  // where its block table begins in block_ids
};

struct StokerStep {
  int32_t num_tokens;
  int32_t num_sequences;
  int32_t num_sampled;
  const int32_t* token_ids;
  const StokerSequence* sequences;
  const int32_t* block_ids;
  const int32_t* sampled_rows;
};

// [L, 2, num_blocks, ...]: see kv.h for what a block holds.
struct StokerCache {
  void* storage;
  int32_t num_blocks;
  int32_t block_size;
};

// How the next token of one row is picked; see SamplingParams of messages.py.
struct StokerPick {
  double place;       // in [0, 1): where in the distribution
  float temperature;  // 0: the most likely token
  float top_p;        // 1: off
  float min_p;        // 0: off
  int32_t top_k;      // 0: off
};

// The threads that compute and their scratch memory.
struct StokerContext;

// Bit 0: float32 can be computed on this CPU; bit 1: bfloat16, and weights of 8 bits beside it, too.
int32_t stoker_supported();
// Sizes of the structs above, for the caller to compare with its own: linear, experts, layer, model, sequence, step,
// cache, pick, part.
void stoker_struct_sizes(int32_t sizes[9]);

// Null where so many threads cannot be started.
StokerContext* stoker_create(int32_t num_threads);
void stoker_destroy(StokerContext* context);

// Bytes that a packed weight of this shape takes; gate_up counts both halves as num_outputs.
int64_t stoker_packed_bytes(int64_t num_outputs, int64_t num_inputs, int32_t element_bytes, int32_t is_pair);
int64_t stoker_quantized_bytes(int64_t num_outputs, int64_t num_inputs, int32_t is_pair);

// Rearrange a row-major weight [num_outputs, num_inputs] for the kernels.
void stoker_f32_pack(const void* weight, int64_t num_outputs, int64_t num_inputs, int32_t is_pair, void* packed);
void stoker_bf16_pack(const void* weight, int64_t num_outputs, int64_t num_inputs, int32_t is_pair, void* packed);

// The same, quantized to 8 bits in groups of 32 inputs; num_inputs is a multiple of 32.
void stoker_bf16_pack_quantized(const float* weight, int64_t num_outputs, int64_t num_inputs, int32_t is_pair,
                                void* packed);

// Rearrange rows of blocks as a GGUF file has them, of GGML's types 2, 3, 8, 12 and 14, and the bytes that this takes.
int64_t stoker_bf16_blocks_bytes(int32_t type, int64_t num_outputs, int64_t num_inputs, int32_t is_pair);
void stoker_bf16_pack_blocks(int32_t type, const void* blocks, int64_t num_outputs, int64_t num_inputs, int32_t is_pair,
                             void* packed);

// Read GGML's blocks of types 2, 3, 8, 12 and 14, as numbers of the element type. Returns 0, and has read nothing, for
// any other type. Needs what float32 kernels need.
int32_t stoker_f32_dequantize(int32_t type, const void* blocks, int64_t num_blocks, void* values);
int32_t stoker_bf16_dequantize(int32_t type, const void* blocks, int64_t num_blocks, void* values);

// rows [num_rows, inputs] @ weight.T + bias -> out [num_rows, outputs]; what the self-check calls.
void stoker_f32_linear(StokerContext* context, const StokerLinear* linear, const void* rows, int32_t num_rows, void* out);
void stoker_bf16_linear(StokerContext* context, const StokerLinear* linear, const void* rows, int32_t num_rows, void* out);

// Tell of each row of logits [num_rows, size] whether all of them are finite numbers.
void stoker_finite(StokerContext* context, const float* logits, int32_t num_rows, int64_t size, uint8_t* is_finite);

// Pick a token for each row; -1 where the largest logit is not finite or one is NaN. Returns 0 where memory ran out.
int32_t stoker_pick(StokerContext* context, const float* logits, int32_t num_rows, int64_t size,
                    const StokerPick* picks, int32_t* token_ids);

// Compute one step and write float32 logits [num_sampled, V]. Returns 0, and has computed nothing, where memory ran
// out.
int32_t stoker_f32_step(StokerContext* context, const StokerModel* model, const StokerStep* step,
                        const StokerCache* cache, float* logits);
int32_t stoker_bf16_step(StokerContext* context, const StokerModel* model, const StokerStep* step,
                         const StokerCache* cache, float* logits);
}
#pragma GCC visibility pop
