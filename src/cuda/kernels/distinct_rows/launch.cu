#include "cuda/kernels/distinct_rows/launch.h"

#include <bit>

#include "cuda/core/cuda_check.h"
#include "cuda/core/operand_check.h"
#include "cuda/kernels/distinct_rows/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::distinct_rows {
namespace {

constexpr int64_t kMaxRows = int64_t{1} << 30;  // twice as many slots have 32-bit numbers
constexpr size_t kAlignment = 256;

int64_t num_slots(int64_t num_rows) { return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(2 * num_rows))); }

// Hands out parts of the workspace, or only counts their bytes when there is none.
class Parts {
 public:
  explicit Parts(void* workspace) : base_(static_cast<uint8_t*>(workspace)) {}

  template <class T>
  T* take(int64_t count) {
    T* part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return part;
  }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* base_;
  size_t bytes_ = 0;
};

Numbering take_numbering(Parts& parts, int64_t num_rows) {
  Numbering numbering{};
  numbering.num_rows = num_rows;
  numbering.num_tiles = static_cast<int32_t>((num_rows + kTileRows - 1) / kTileRows);
  numbering.representative = parts.take<int32_t>(num_rows);
  numbering.number = parts.take<int32_t>(num_rows);
  numbering.tile_begin = parts.take<int32_t>(numbering.num_tiles);
  return numbering;
}

// Keys and first rows lie together, so that one memset clears both.
RowParams take_row_params(Parts& parts, int64_t num_rows) {
  RowParams params{};
  const int64_t slots = num_slots(num_rows);
  params.keys = parts.take<Key>(slots);
  params.first_row = parts.take<uint32_t>(slots);
  params.slot_mask = static_cast<uint32_t>(slots - 1);
  params.row_slot = parts.take<uint32_t>(num_rows);
  params.numbering = take_numbering(parts, num_rows);
  return params;
}

TokenParams take_token_params(Parts& parts, int64_t num_rows, int32_t vocab_size) {
  TokenParams params{};
  params.first_row = parts.take<uint32_t>(vocab_size);
  params.numbering = take_numbering(parts, num_rows);
  return params;
}

void validate_count(const char* argument, int64_t num_rows) {
  if (num_rows < 0 || num_rows > kMaxRows) throw Error(argument, str_cat(num_rows), str_cat("0..", kMaxRows));
}

// Whether there is nothing to find; the count says so then.
bool has_no_rows(int64_t num_rows, int32_t* num_distinct, cudaStream_t stream) {
  validate_count("distinct_rows num_rows", num_rows);
  cuda::check_pointer("distinct_rows num_distinct", num_distinct, alignof(int32_t));
  if (num_rows == 0) TESSERA_CUDA_CHECK(cudaMemsetAsync(num_distinct, 0, sizeof(int32_t), stream));
  return num_rows == 0;
}

void validate(const Args& args) {
  if (args.rows.kind == cta::Operand::f32) throw Error("distinct_rows rows", "f32", "f16, bf16 or split");
  if (args.row_columns < 1 || args.row_columns % 8 != 0)
    throw Error("distinct_rows row_columns", str_cat(args.row_columns), "a positive multiple of 8");
  cuda::check_operand("distinct_rows rows", args.rows, args.num_rows, args.row_columns);
  if (args.distinct.data != nullptr) {
    if (args.distinct.kind != args.rows.kind) throw Error("distinct_rows distinct", "another kind", "the kind of rows");
    cuda::check_operand("distinct_rows distinct", args.distinct, args.num_rows, args.row_columns);
  }
  cuda::check_pointer("distinct_rows row_index", args.row_index, alignof(int32_t));
  cuda::check_pointer("distinct_rows workspace", args.workspace, kAlignment);
}

void validate(const TokenArgs& args) {
  if (args.vocab_size < 1) throw Error("distinct_rows vocab_size", str_cat(args.vocab_size), "at least 1");
  cuda::check_pointer("distinct_rows ids", args.ids, alignof(int32_t));
  cuda::check_pointer("distinct_rows distinct_ids", args.distinct_ids, alignof(int32_t));
  cuda::check_pointer("distinct_rows row_index", args.row_index, alignof(int32_t));
  cuda::check_pointer("distinct_rows workspace", args.workspace, kAlignment);
}

template <class Params>
void launch_kernel(void (*kernel)(Params), int64_t ctas, int threads, cudaStream_t stream, const Params& params) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(ctas));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  TESSERA_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, params));
}

void launch_numbering(const Numbering& numbering, cudaStream_t stream) {
  launch_kernel(count_kernel, numbering.num_tiles, kTileRows, stream, numbering);
  launch_kernel(scan_kernel, 1, kTileRows, stream, numbering);
  launch_kernel(number_kernel, numbering.num_tiles, kTileRows, stream, numbering);
}

}  // namespace

size_t workspace_bytes(int64_t num_rows) {
  validate_count("distinct_rows num_rows", num_rows);
  if (num_rows == 0) return 0;
  Parts parts(nullptr);
  take_row_params(parts, num_rows);
  return parts.bytes();
}

size_t token_workspace_bytes(int64_t num_rows, int32_t vocab_size) {
  validate_count("distinct_rows num_rows", num_rows);
  if (num_rows == 0) return 0;
  Parts parts(nullptr);
  take_token_params(parts, num_rows, vocab_size);
  return parts.bytes();
}

void find(const Args& args, cudaStream_t stream) {
  if (has_no_rows(args.num_rows, args.num_distinct, stream)) return;
  validate(args);
  Parts parts(args.workspace);
  RowParams params = take_row_params(parts, args.num_rows);
  params.rows = args.rows;
  params.distinct = args.distinct;
  params.row_chunks = args.row_columns / 8;
  params.num_planes = cta::num_planes(args.rows.kind);
  params.hash_mask = args.hash_mask;
  params.row_index = args.row_index;
  params.numbering.num_distinct = args.num_distinct;
  const auto cleared = reinterpret_cast<uint8_t*>(params.row_slot) - reinterpret_cast<uint8_t*>(params.keys);
  TESSERA_CUDA_CHECK(cudaMemsetAsync(params.keys, 0xFF, static_cast<size_t>(cleared), stream));
  const int64_t ctas = (args.num_rows + kRowsPerCta - 1) / kRowsPerCta;
  launch_kernel(hash_kernel, ctas, kPolicy.row_threads, stream, params);
  launch_kernel(verify_kernel, ctas, kPolicy.row_threads, stream, params);
  launch_numbering(params.numbering, stream);
  launch_kernel(compact_kernel, ctas, kPolicy.row_threads, stream, params);
}

void find_tokens(const TokenArgs& args, cudaStream_t stream) {
  if (has_no_rows(args.num_rows, args.num_distinct, stream)) return;
  validate(args);
  Parts parts(args.workspace);
  TokenParams params = take_token_params(parts, args.num_rows, args.vocab_size);
  params.ids = args.ids;
  params.distinct_ids = args.distinct_ids;
  params.row_index = args.row_index;
  params.numbering.num_distinct = args.num_distinct;
  const auto vocab_bytes = static_cast<size_t>(args.vocab_size) * sizeof(uint32_t);
  TESSERA_CUDA_CHECK(cudaMemsetAsync(params.first_row, 0xFF, vocab_bytes, stream));
  const int64_t tiles = params.numbering.num_tiles;
  launch_kernel(first_token_kernel, tiles, kTileRows, stream, params);
  launch_kernel(token_kernel, tiles, kTileRows, stream, params);
  launch_numbering(params.numbering, stream);
  launch_kernel(compact_tokens_kernel, tiles, kTileRows, stream, params);
}

}  // namespace tessera::kernels::distinct_rows
