// Tuning numbers of the implicit GEMM, as a value.
#pragma once

namespace tessera::kernels::implicit_gemm {

struct Policy {
  int tile_features;  // rows of the weight matrix in a CTA's tile
  int tile_columns;   // (record, window) pairs in a tile, at most
  int tile_k;         // elements of K a pipeline stage holds
  int stages;         // pipeline stages
  int cluster_size;   // CTAs that share the input of a tile
  int group_height;   // blocks of records that are walked together before the next features: what L2 keeps of weights
};

// Features are the rows of the tile because a tile's columns may then be any multiple of 8: 16 sentences x 14 windows,
// 20 x 12, 24 x 10 and 32 x 8 fill 224, 240, 240 and 256 columns without one to spare. Four stages of 48 KiB and 32 KiB
// of output staging fill the shared memory.
constexpr Policy default_policy() { return {128, 256, 64, 4, 2, 8}; }

}  // namespace tessera::kernels::implicit_gemm
