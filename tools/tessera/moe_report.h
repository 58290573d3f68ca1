// The results of `tessera bench moe` as text and as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "moe_bench.h"

namespace tessera::cli {

/// A few lines: the load, the layer in bursts and sustained, each kernel, the check.
std::string moe_result_text(const MoeCase& moe_case, const MoeResult& result, bool on_gpu);

nlohmann::ordered_json moe_result_json(const MoeCase& moe_case, const MoeResult& result);

}  // namespace tessera::cli
