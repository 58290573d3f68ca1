// Finds the distinct rows of a matrix, exactly: rows are equal iff all their bits are.
//
//   rows  a b a c b        ->  num_distinct 3, distinct rows {a, b, c} compacted, row_index {0, 1, 0, 2, 1}
//
// 1. a 64-bit hash of every row; 2. an open-addressing table maps hashes to the first row that has each (the lowest
// index, so that the result never depends on timing); 3. every row is compared with that first row: one that differs
// (two rows of one hash) becomes distinct by itself, even if it equals another such row; 4. the distinct rows are
// numbered in the order of their first occurrence and copied together. The count stays on the device.
//
// What always holds: the distinct row of a row's number equals the row, bit for bit. Without two different rows of one
// 64-bit hash the distinct rows are also different from each other. Three reads of the matrix at most. A broken hash
// costs speed and repeated rows, never a wrong one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/core/operand.h"

namespace tessera::kernels::distinct_rows {

struct Args {
  cta::OperandView rows;      // [num_rows, stride]: f16, bf16 or split (both planes count)
  int64_t num_rows;           // at most 2^30; 0: num_distinct becomes 0
  int32_t row_columns;        // columns compared and copied, a multiple of 8, <= stride
  cta::OperandView distinct;  // [num_rows, stride] same kind: the first num_distinct rows are written; may be null
                              // data: not copied
  int32_t* row_index;         // [num_rows]
  int32_t* num_distinct;      // [1] device memory
  void* workspace;            // workspace_bytes(num_rows), 256-byte aligned
  uint64_t hash_mask = ~uint64_t{0};  // bits of the hash that are kept: tests make collisions with it
};

// About 36 to 60 bytes a row.
size_t workspace_bytes(int64_t num_rows);

// The same for token ids: rows that are numbers. ids [num_rows] in [0, vocab_size).
struct TokenArgs {
  const int32_t* ids;  // [num_rows]
  int64_t num_rows;
  int32_t vocab_size;
  int32_t* distinct_ids;  // [min(num_rows, vocab_size)]: in the order of their first occurrence
  int32_t* row_index;     // [num_rows]
  int32_t* num_distinct;  // [1] device memory
  void* workspace;        // token_workspace_bytes(num_rows, vocab_size), 256-byte aligned
};

size_t token_workspace_bytes(int64_t num_rows, int32_t vocab_size);

// Enqueued on `stream`; nothing is allocated; capturable. Throw Error naming the argument that is wrong.
void find(const Args& args, cudaStream_t stream);
void find_tokens(const TokenArgs& args, cudaStream_t stream);

}  // namespace tessera::kernels::distinct_rows
