// Which of several equal forms of the model the CPU back end computes. The choice follows from the configuration, the
// kind of input and the machine, never from a batch, because the forms round differently.
#pragma once

#include <iosfwd>

#include "tessera/classifier/classifier.h"
#include "tessera/classifier/config.h"

namespace tessera::classifier {

/// A projected sentence adds sequence_length * taps * filters table values; the direct form spends embedding_size
/// multiply-adds on each of them. An addition whose operand comes from memory costs about as much as this many
/// multiply-adds of a blocked product, so narrower embeddings are multiplied.
inline constexpr int64_t kMinProjectedEmbedding = 16;

struct CpuForm {
  /// Token ids: sums of rows of a projected vocabulary instead of products (cpu/projected_convolution.h).
  bool projected_vocabulary = false;
  /// The first head layer multiplied into the experts at load, as nothing lies between them.
  bool folded_head = false;

  bool operator==(const CpuForm&) const = default;
};
std::ostream& operator<<(std::ostream& out, const CpuForm& form);

CpuForm select_cpu_form(const ClassifierConfig& config, InputKind input, size_t physical_memory_bytes);

/// Multiply-adds (counting two) a sentence after its features: router, experts, head, in that form.
int64_t tail_flops(const ClassifierConfig& config, const CpuForm& form);

}  // namespace tessera::classifier
