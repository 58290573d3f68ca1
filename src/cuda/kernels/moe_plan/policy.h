// Tuning numbers of the plan kernels.
#pragma once

#include <cstdint>
#include <ostream>

namespace tessera::kernels::moe_plan {

struct Policy {
  int32_t threads;     // of a CTA: one an expert, so also the limit of E
  int32_t max_chunks;  // CTAs that share the (token, slot) pairs
  int32_t max_table;   // chunks * experts: every CTA reads the whole table of chunk counts

  friend std::ostream& operator<<(std::ostream& out, const Policy& p) {
    return out << p.threads << " threads, at most " << p.max_chunks << " chunks, table of at most " << p.max_table;
  }
};

// 128 chunks + the prefix CTA are one wave on 132 multiprocessors; a table of 64 Ki counts is read from L2 in about 2
// us.
constexpr Policy default_policy() { return {1024, 128, 64 * 1024}; }

// Pairs a chunk holds and how many chunks there are: chunks are whole multiples of the CTA, so that each warp's part is
// contiguous and the order inside a chunk is the order of the pairs.
struct Chunking {
  int32_t num_chunks;
  int32_t chunk_pairs;

  friend constexpr bool operator==(const Chunking&, const Chunking&) = default;
};

inline constexpr int64_t kMaxChunkPairs = int64_t{32} * 1024;  // positions inside a chunk are kept in 16 bits

constexpr Chunking select_chunking(const Policy& policy, int64_t num_pairs, int32_t num_experts) {
  const int64_t by_table = policy.max_table / num_experts;
  const int64_t wanted = by_table < policy.max_chunks ? by_table : policy.max_chunks;
  const int64_t needed = (num_pairs + kMaxChunkPairs - 1) / kMaxChunkPairs;
  const int64_t chunks = wanted > needed ? wanted : needed;
  const int64_t per_chunk = (num_pairs + chunks - 1) / chunks;
  const int64_t rounds = (per_chunk + policy.threads - 1) / policy.threads;
  const int64_t chunk_pairs = (rounds > 0 ? rounds : 1) * policy.threads;
  return {static_cast<int32_t>((num_pairs + chunk_pairs - 1) / chunk_pairs), static_cast<int32_t>(chunk_pairs)};
}

}  // namespace tessera::kernels::moe_plan
