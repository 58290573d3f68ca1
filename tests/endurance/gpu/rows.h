// The rows of the long run on a GPU: each measures one thing and says in JSON what came out.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tessera::testing {

struct GpuEndurance {
  int layers = 5000;    ///< fuzzed
  int launches = 1000;  ///< of each of 12 configurations
  int soak_seconds = 120;
  int faults = 5;           ///< of each kind
  int kernel_seconds = 20;  ///< how long the kernel that holds the device up lasts
  int lease_ms = 2000;      ///< after which its process is ended
};

/// Members "ok" (bool) and figures; "problems", a list, where there are some.
using Row = nlohmann::ordered_json;

Row fuzzed_layers(const GpuEndurance& options);
Row equal_launches(const GpuEndurance& options);
Row guard_pages(const GpuEndurance& options);
Row soak(const GpuEndurance& options);
Row out_of_memory(const GpuEndurance& options);
Row device_lost(const GpuEndurance& options);
Row illegal_address(const GpuEndurance& options);
Row hanging_kernel(const GpuEndurance& options);
/// Where there are two GPUs or more; else it says that it was skipped.
Row several_workers(const GpuEndurance& options);

/// This program as the worker process of `illegal_address` and `hanging_kernel`: arguments behind the sub-command.
int run_fault_worker(const std::vector<std::string>& arguments);
/// This program as a worker process of `several_workers`.
int run_breakable_worker(const std::vector<std::string>& arguments);
/// In a process of its own: what the library says in the process whose device is lost. 0 if it is right.
int run_lost_process();

}  // namespace tessera::testing
