#include "classifier/cpu_form.h"

#include <ostream>

namespace tessera::classifier {
namespace {

// The table may grow to its full size, whatever the input; this leaves as much again for everything else.
constexpr double kTableShareOfMemory = 2;

}  // namespace

std::ostream& operator<<(std::ostream& out, const CpuForm& form) {
  return out << (form.projected_vocabulary ? "projected vocabulary" : "direct convolutions")
             << (form.folded_head ? ", first head layer folded into the experts" : ", experts as they are");
}

CpuForm select_cpu_form(const ClassifierConfig& config, InputKind input, size_t physical_memory_bytes) {
  CpuForm form;
  const auto table_bytes = static_cast<double>(config.vocab_size) * static_cast<double>(config.num_taps()) *
                           static_cast<double>(config.num_filters) * static_cast<double>(sizeof(float));
  form.projected_vocabulary = input == InputKind::ids && config.embedding_size >= kMinProjectedEmbedding &&
                              table_bytes * kTableShareOfMemory <= static_cast<double>(physical_memory_bytes);
  if (!config.head_sizes.empty()) {
    CpuForm folded = form;
    folded.folded_head = true;
    if (tail_flops(config, folded) < tail_flops(config, form)) form = folded;
  }
  return form;
}

int64_t tail_flops(const ClassifierConfig& config, const CpuForm& form) {
  const size_t first_head = form.folded_head ? 1 : 0;
  int64_t products = config.num_experts * config.feature_size();
  products += config.num_experts * config.head_input_size(first_head) * config.feature_size();
  for (size_t i = first_head; i < config.head_sizes.size(); ++i) {
    products += config.head_input_size(i) * config.head_sizes[i];
  }
  return 2 * (products + config.head_input_size(config.head_sizes.size()) * config.num_classes);
}

}  // namespace tessera::classifier
