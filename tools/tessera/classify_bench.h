// What `tessera bench classify` measures, and who measures it: one class a back end, one report for all.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "back_end.h"
#include "classify_check.h"
#include "classify_data.h"
#include "moe_bench.h"
#include "tessera/classifier/classifier.h"
#include "tessera/classifier/cuda_classifier.h"

namespace tessera::cli {

/// Where a sentence starts: fp32 embeddings in host memory, 16-bit embeddings in device memory, ids in host memory.
enum class Path : uint8_t { embeddings, resident, ids };
std::string path_name(Path path);

struct ClassifyCase {
  Path path = Path::embeddings;
  classifier::Precision precision = classifier::Precision::fp16;
  classifier::Form form = classifier::Form::automatic;
};

/// What the machine allows, measured in turn with the classifier: copies, memory reads or products.
struct Limit {
  std::string what;         ///< "host-to-device copies"
  std::string unit;         ///< "B" or "FLOP"
  double per_sentence = 0;  ///< units that a sentence needs
  Spread rate = {};         ///< units a second
  Spread fraction = {};     ///< of it that the classifier reached, blocks that neighbour each other
};

struct ClassifyResult {
  std::string description;  ///< of the classifier
  double setup_seconds = 0;
  size_t device_bytes = 0;     ///< of one device; 0 on the CPU
  int num_lanes = 1;           ///< of one device, in the sustained blocks
  int64_t num_sentences = 0;   ///< of the latency
  Spread latency_seconds;      ///< all of them, nothing else running
  int num_blocks = 0;          ///< sustained ones
  double seconds_a_block = 0;  ///< median
  Spread rate;                 ///< sentences a second, sustained
  std::optional<Limit> limit;  ///< none on the CPU
  std::string why_no_limit;
  std::vector<DeviceState> states;  ///< of each device in the last sustained block; empty where unknown
  ClassifyCheck check;
};

struct ClassifyBenchOptions {
  double seconds = 10;       ///< of a sustained block
  int64_t micro_batch = 0;   ///< 0: the back end's own
  int64_t num_checked = 4;   ///< records compared with the oracle
  int num_threads = 0;       ///< of the CPU back end and of the host's work; 0: every processor
  std::vector<int> devices;  ///< of the CUDA back end
};

class ClassifyBench {
 public:
  virtual ~ClassifyBench() = default;
  /// Empty, or why this back end cannot measure the case.
  virtual std::string impossible(const ClassifyCase& asked) const = 0;
  virtual ClassifyResult measure(const ClassifyCase& asked) = 0;
  /// Names and values: devices, driver, clocks, libraries; what is missing is said here.
  virtual std::vector<std::pair<std::string, std::string>> description() const = 0;
};

std::unique_ptr<ClassifyBench> make_cpu_classify_bench(std::shared_ptr<ClassifyData> data,
                                                       const ClassifyBenchOptions& options);
/// Only where options.devices are usable GPUs (tessera/cuda/device.h).
std::unique_ptr<ClassifyBench> make_cuda_classify_bench(std::shared_ptr<ClassifyData> data,
                                                        const ClassifyBenchOptions& options);

}  // namespace tessera::cli
