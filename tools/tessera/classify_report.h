// The results of `tessera bench classify` as text and as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "classify_bench.h"

namespace tessera::cli {

/// What every case of one command shares.
struct ClassifyMachine {
  std::vector<int> devices;  ///< empty: the CPU
  int64_t flops_per_sentence = 0;
};

/// A few lines: latency, sustained rate, the limit, clocks, the check.
std::string classify_result_text(const ClassifyCase& asked, const ClassifyResult& result,
                                 const ClassifyMachine& machine);

nlohmann::ordered_json classify_result_json(const ClassifyCase& asked, const ClassifyResult& result,
                                            const ClassifyMachine& machine);

}  // namespace tessera::cli
