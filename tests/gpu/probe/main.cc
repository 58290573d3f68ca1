// What the device computes, bit for bit, against the host model. Prints tables; writes JSON.
//
//   gpu_exact_probe [--out exact.json]
//
// Exit code 1 when anything differs.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "cuda/core/cuda_check.h"
#include "gpu/probe/tensor_core_probe.h"

namespace {

struct Options {
  std::string out;
};

int usage(const char* problem) {
  std::fprintf(stderr, "gpu_exact_probe: %s\nusage: gpu_exact_probe [--out FILE]\n", problem);
  return 2;
}

std::string device_name() {
  cudaDeviceProp properties{};
  TESSERA_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  return properties.name;
}

int run(const Options& options) {
  tessera::ThreadPool threads(tessera::available_processors());
  nlohmann::ordered_json json{
      {"gpu", device_name()},
      {"cuda", std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10)}};
  json["tensor_cores"] = tessera::testing::probe_tensor_cores(threads);
  const bool equal = json["tensor_cores"]["differing"] == 0 && json["tensor_cores"]["shapes_differing"] == 0;
  if (!options.out.empty()) {
    std::ofstream file(options.out);
    file << json.dump(1) << '\n';
    if (!file.flush()) return usage(("cannot write " + options.out).c_str());
  }
  std::printf(equal ? "EXACT: every bit is the model's\n" : "DIFFERENT\n");
  return equal ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name != "--out" || i + 1 == argc) return usage(("cannot take '" + name + "'").c_str());
    options.out = argv[++i];
  }
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_exact_probe: %s\n", error.what());
    return 2;
  }
}
