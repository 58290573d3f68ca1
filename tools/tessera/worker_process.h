// `classify --isolate`: this program as the worker process of a device, and as the supervisor that starts it and knows
// nothing of CUDA.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "back_end.h"
#include "model_options.h"
#include "tessera/classifier/classifier.h"
#include "tessera/classifier/model.h"

namespace tessera::cli {

/// The sub-command that no help lists: the supervisor alone knows what descriptors it needs.
inline constexpr const char* kWorkerCommand = "worker-process";

/// `arguments`: those behind the sub-command. Returns an exit code.
int run_worker_process(std::vector<std::string> arguments);

/// As find_devices, told by a process of its own. Throws Error where that fails.
Devices find_devices_elsewhere();

/// One process a GPU, or `isolation.num_processes` that share the CPU's threads; of each its lanes.
std::vector<std::unique_ptr<classifier::Classifier>> make_isolated(const classifier::ClassifierConfig& config,
                                                                   const ModelOptions& options, const BackEnd& back_end,
                                                                   classifier::InputKind input);

}  // namespace tessera::cli
