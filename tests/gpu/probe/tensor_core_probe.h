// The device's products against the host model, class by class, and against what the model might be instead.
#pragma once

#include <nlohmann/json.hpp>

#include "tessera/core/thread_pool.h"

namespace tessera::testing {

/// Prints a table and what differs first; the same as JSON: rows {class, type, K, elements, differing}, totals, and for
/// every other arithmetic how many sampled elements it gets wrong.
nlohmann::ordered_json probe_tensor_cores(ThreadPool& threads);

}  // namespace tessera::testing
