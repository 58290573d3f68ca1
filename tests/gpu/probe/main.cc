// What the device computes, bit for bit, against the host model. Prints tables; writes JSON.
//
//   gpu_exact_probe [--out exact.json] [--layers 5000] [--record exact_layers.txt]
//
// --layers 0 leaves the layers out; --record writes what machines without a GPU compare the model with. Exit code 1
// when anything differs.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "cuda/core/cuda_check.h"
#include "gpu/probe/layers_probe.h"
#include "gpu/probe/tensor_core_probe.h"
#include "tessera/core/thread_pool.h"

namespace {

struct Options {
  std::string out, record;
  int layers = 5000;
};

int refuse(const std::string& problem) {
  std::fprintf(stderr, "gpu_exact_probe: %s\nusage: gpu_exact_probe [--out FILE] [--layers COUNT] [--record FILE]\n",
               problem.c_str());
  return 2;
}

std::string device_name() {
  cudaDeviceProp properties{};
  TESSERA_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  return properties.name;
}

int run(const Options& options) {
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  tessera::ThreadPool threads(tessera::available_processors());
  nlohmann::ordered_json json{
      {"gpu", device_name()},
      {"cuda", std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10)}};
  json["tensor_cores"] = tessera::testing::probe_tensor_cores(threads);
  std::printf("-- %.1f s\n", seconds());
  bool equal = json["tensor_cores"]["differing"] == 0 && json["tensor_cores"]["shapes_differing"] == 0;
  if (options.layers > 0) {
    json["layers"] = tessera::testing::probe_layers(options.layers);
    for (const char* part : {"exact_activations", "device_activations"})
      equal = equal && json["layers"][part]["differing"] == 0;
    std::printf("-- %.1f s\n", seconds());
  }
  if (!options.record.empty()) tessera::testing::record_layers(options.record, json["gpu"]);
  if (!options.out.empty()) {
    std::ofstream file(options.out);
    file << json.dump(1) << '\n';
    if (!file.flush()) return refuse("cannot write " + options.out);
  }
  std::printf("%s\n", equal ? "EXACT: every bit is the model's" : "DIFFERENT");
  return equal ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) return refuse("nothing follows '" + name + "'");
    const std::string value = argv[i + 1];
    if (name == "--out")
      options.out = value;
    else if (name == "--record")
      options.record = value;
    else if (name == "--layers")
      options.layers = std::atoi(value.c_str());
    else
      return refuse("unknown option '" + name + "'");
  }
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_exact_probe: %s\n", error.what());
    return 2;
  }
}
