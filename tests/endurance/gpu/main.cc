// gpu_endurance: the rows of the long run on one GPU. Prints a line a row and writes all as JSON.
//
//   gpu_endurance --out endurance_gpu.json [--layers 5000] [--launches 1000] [--soak 120] [--faults 5]
//                 [--kernel-seconds 20] [--lease-ms 2000] [--only NAME,NAME] [--skip NAME,NAME]
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/core/cuda_check.h"
#include "endurance/gpu/rows.h"

namespace tessera::testing {
namespace {

using Function = Row (*)(const GpuEndurance&);

constexpr std::pair<const char*, Function> kRows[] = {
    // In this process nothing of CUDA has run before the first: it starts others.
    {"device_lost", device_lost},
    {"fuzzed_layers", fuzzed_layers},
    {"equal_launches", equal_launches},
    {"guard_pages", guard_pages},
    {"soak", soak},
    {"out_of_memory", out_of_memory},
    {"illegal_address", illegal_address},
    {"hanging_kernel", hanging_kernel},
    {"several_workers", several_workers}};

bool names(const std::string& list, std::string_view name) {
  return ("," + list + ",").find("," + std::string(name) + ",") != std::string::npos;
}

std::map<std::string, std::string> arguments_of(int argc, char** argv) {
  std::map<std::string, std::string> given;
  for (int i = 1; i + 1 < argc; i += 2) given[argv[i]] = argv[i + 1];
  return given;
}

Row guarded(Function function, const GpuEndurance& options) {
  try {
    return function(options);
  } catch (const std::exception& error) {
    return {{"ok", false}, {"problems", {std::string("ended by: ") + error.what()}}};
  }
}

int run(int argc, char** argv) {
  std::map<std::string, std::string> given = arguments_of(argc, argv);
  GpuEndurance options;
  const auto take = [&](const char* name, int& value) {
    if (given.contains(name)) value = std::atoi(given[name].c_str());
  };
  take("--layers", options.layers);
  take("--launches", options.launches);
  take("--soak", options.soak_seconds);
  take("--faults", options.faults);
  take("--kernel-seconds", options.kernel_seconds);
  take("--lease-ms", options.lease_ms);
  Row rows;
  bool all_ok = true;
  for (const auto& [name, function] : kRows) {
    if (given.contains("--only") && !names(given["--only"], name)) continue;
    if (given.contains("--skip") && names(given["--skip"], name)) continue;
    const auto begin = std::chrono::steady_clock::now();
    Row row = guarded(function, options);
    row["row_seconds"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const bool failed_checks = ::testing::UnitTest::GetInstance()->ad_hoc_test_result().Failed();
    if (failed_checks) row["ok"] = false;
    all_ok = all_ok && row["ok"].get<bool>();
    std::printf("%s %s\n", name, row.dump().c_str());
    std::fflush(stdout);
    rows[name] = row;
  }
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return 1;
  const Row all = {{"gpu", properties.name}, {"ok", all_ok}, {"rows", rows}};
  std::ofstream(given.contains("--out") ? given["--out"] : "endurance_gpu.json") << all.dump(2) << "\n";
  std::printf("%s\n", all_ok ? "all rows ok" : "FAILED");
  return all_ok ? 0 : 1;
}

}  // namespace
}  // namespace tessera::testing

int main(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  if (command == "worker-process") return tessera::testing::run_fault_worker({argv + 2, argv + argc});
  if (command == "breakable-process") return tessera::testing::run_breakable_worker({argv + 2, argv + argc});
  if (command == "lost-process") return tessera::testing::run_lost_process();
  ::testing::InitGoogleTest(&argc, argv);
  return tessera::testing::run(argc, argv);
}
