// output_bits: what the layer's kernels compute and how long they take, for a comparison of two builds.
//
//   output_bits [SUBSTRING]      `case NAME HASH` for every case, or those whose name has the substring; then `cases N`
//   output_bits --kernel NAME    the same by this kernel, without the cases that it cannot run
//   output_bits --time           `time PRESET TOKENS MICROSECONDS` for some whole layers
//
// Uses the public interface of CudaLayer alone and makes its data on the host, so that the source also builds against
// an older library; compare.py judges two outputs.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "gpu/moe/output_bits/cases.h"
#include "tessera/core/error.h"

namespace tessera::output_bits {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(std::max<size_t>(bytes, 16)) {
    check(cudaMalloc(&data_, bytes_), "allocate");
    check(cudaMemset(data_, 0xFF, bytes_), "poison");  // a NaN in every type: what is read unwritten shows
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* get() const { return data_; }
  size_t bytes() const { return bytes_; }
  void upload(const void* host, size_t bytes, size_t offset = 0) const {
    check(cudaMemcpy(static_cast<char*>(data_) + offset, host, bytes, cudaMemcpyHostToDevice), "upload");
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// About normal, variance 1: the sum of four uniform numbers. Exact in double, so the same everywhere.
float normal(uint64_t seed, uint64_t index) {
  const uint64_t bits = mix(seed * 0x100000001B3u + index);
  double sum = 0.0;
  for (int part = 0; part < 4; ++part) sum += static_cast<double>(bits >> (16 * part) & 0xFFFF) / 65536.0 - 0.5;
  return static_cast<float>(sum * 1.7320508075688772);
}

uint16_t rounded(DType dtype, float value) { return dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value); }

// Fills tensors with a repeated pattern of about a million numbers, each tensor from another place of it.
class Filler {
 public:
  explicit Filler(DType dtype) : dtype_(dtype), normal_(kSize) {
    for (size_t i = 0; i < kSize; ++i) normal_[i] = normal(1, i);
  }

  void fill(const Memory& tensor, size_t count, float scale, size_t seed) const {
    std::vector<uint16_t> pattern(std::min(kSize, count));
    for (size_t i = 0; i < pattern.size(); ++i)
      pattern[i] = rounded(dtype_, scale * normal_[(i + seed * 131071) % kSize]);
    for (size_t done = 0; done < count; done += pattern.size())
      tensor.upload(pattern.data(), 2 * std::min(pattern.size(), count - done), 2 * done);
  }

 private:
  static constexpr size_t kSize = 1000003;  // a prime: no two rows of a tensor are equal
  DType dtype_;
  std::vector<float> normal_;
};

std::vector<int32_t> make_ids(const Case& c, uint64_t seed) {
  const moe::LayerConfig& config = c.config;
  if (c.ids == Ids::preset_routing)
    return moe::make_topk_ids(c.routing, c.num_tokens, config.num_experts, config.top_k, seed);
  const int32_t range = c.ids == Ids::duplicate ? config.num_experts : 3 * config.num_experts;
  std::vector<int32_t> ids(static_cast<size_t>(c.num_tokens) * static_cast<size_t>(config.top_k));
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(mix(seed + 7919 * i) % static_cast<uint64_t>(range));
    if (c.ids == Ids::outside) ids[i] -= config.num_experts;
  }
  return ids;
}

// Everything a case needs in device memory.
class Run {
 public:
  explicit Run(const Case& c)
      : case_(c),
        h_(static_cast<size_t>(c.config.hidden_size)),
        i_(static_cast<size_t>(c.config.intermediate_size)),
        e_(static_cast<size_t>(c.config.num_experts)),
        pairs_(static_cast<size_t>(c.num_tokens) * static_cast<size_t>(c.config.top_k)),
        width_((c.config.gated ? 2 : 1) * i_),
        shared_(static_cast<size_t>(c.config.shared_intermediate_size)),
        x_(2 * h_ * tokens()),
        gate_up_(2 * e_ * width_ * h_),
        down_(2 * e_ * h_ * i_),
        gate_up_bias_(2 * e_ * width_),
        down_bias_(2 * e_ * h_),
        shared_gate_up_(4 * shared_ * h_),
        shared_down_(2 * shared_ * h_),
        shared_weight_(4 * tokens()),
        map_(4 * static_cast<size_t>(c.config.num_mapped_experts)),
        topk_weights_(4 * pairs_),
        out_(2 * h_ * tokens()) {
    fill_tensors();
    fill_weights_of_slots();
    std::vector<int32_t> map(static_cast<size_t>(c.config.num_mapped_experts));
    for (size_t i = 0; i < map.size(); ++i) map[i] = i % 3 == 0 ? -1 : static_cast<int32_t>(mix(i) % (e_ + 2));
    map_.upload(map.data(), 4 * map.size());
    add_ids(make_ids(c, 1));
  }

  void add_ids(const std::vector<int32_t>& ids) {
    ids_.push_back(std::make_unique<Memory>(8 * ids.size()));
    const std::vector<int64_t> wide(ids.begin(), ids.end());
    case_.ids_are_64_bit ? ids_.back()->upload(wide.data(), 8 * wide.size())
                         : ids_.back()->upload(ids.data(), 4 * ids.size());
  }

  moe::LayerWeights weights() const {
    moe::LayerWeights weights;
    weights.gate_up = gate_up_.get();
    weights.down = down_.get();
    if (case_.bias) weights.gate_up_bias = gate_up_bias_.get();
    if (case_.bias) weights.down_bias = down_bias_.get();
    if (shared_ > 0) weights.shared_gate_up = shared_gate_up_.get();
    if (shared_ > 0) weights.shared_down = shared_down_.get();
    if (case_.config.num_mapped_experts > 0) weights.expert_map = static_cast<const int32_t*>(map_.get());
    return weights;
  }

  moe::LayerInputs inputs(size_t set = 0) const {
    moe::LayerInputs inputs;
    inputs.x = x_.get();
    inputs.topk_ids = ids_[set % ids_.size()]->get();
    inputs.ids_are_64_bit = case_.ids_are_64_bit;
    inputs.topk_weights = topk_weights_.get();
    inputs.topk_weights_dtype = case_.topk_weights_dtype;
    inputs.out = out_.get();
    inputs.num_tokens = case_.num_tokens;
    if (case_.weighted_shared_expert) inputs.shared_weight = static_cast<const float*>(shared_weight_.get());
    return inputs;
  }

  std::vector<uint16_t> output() const {
    std::vector<uint16_t> host(h_ * tokens());
    check(cudaMemcpy(host.data(), out_.get(), 2 * host.size(), cudaMemcpyDeviceToHost), "run the layer");
    return host;
  }

 private:
  size_t tokens() const { return static_cast<size_t>(case_.num_tokens); }

  void fill_tensors() {
    const Filler filler(case_.config.dtype);
    const float scale_h = 1.0f / std::sqrt(static_cast<float>(h_)), scale_i = 1.0f / std::sqrt(static_cast<float>(i_));
    filler.fill(x_, h_ * tokens(), 1.0f, 1);
    filler.fill(gate_up_, e_ * width_ * h_, scale_h, 2);
    filler.fill(down_, e_ * h_ * i_, scale_i, 3);
    filler.fill(gate_up_bias_, e_ * width_, 0.5f, 4);
    filler.fill(down_bias_, e_ * h_, 0.5f, 5);
    filler.fill(shared_gate_up_, 2 * shared_ * h_, scale_h, 6);
    filler.fill(shared_down_, shared_ * h_, scale_i, 7);
    if (!case_.shows_intermediate) return;
    std::vector<uint16_t> identity(e_ * h_ * i_);
    for (size_t row = 0; row < e_ * h_; ++row) identity[row * i_ + row % h_] = rounded(case_.config.dtype, 1.0f);
    down_.upload(identity.data(), 2 * identity.size());
  }

  void fill_weights_of_slots() {
    std::vector<float> weights(pairs_);
    std::vector<uint16_t> narrow(pairs_);
    for (size_t i = 0; i < pairs_; ++i) {
      weights[i] = case_.config.top_k == 1 ? 1.0f : static_cast<float>(mix(i) % 1000 + 1) / 1000.0f;
      narrow[i] = rounded(case_.topk_weights_dtype, weights[i]);
    }
    case_.topk_weights_dtype == DType::f32 ? topk_weights_.upload(weights.data(), 4 * pairs_)
                                           : topk_weights_.upload(narrow.data(), 2 * pairs_);
    std::vector<float> shared(tokens());
    for (size_t t = 0; t < shared.size(); ++t) shared[t] = static_cast<float>(t % 9 + 1) / 8.0f;
    shared_weight_.upload(shared.data(), 4 * shared.size());
  }

  Case case_;
  size_t h_, i_, e_, pairs_, width_, shared_;
  Memory x_, gate_up_, down_, gate_up_bias_, down_bias_, shared_gate_up_, shared_down_, shared_weight_, map_,
      topk_weights_, out_;
  std::vector<std::unique_ptr<Memory>> ids_;
};

uint64_t hash_of(const std::vector<uint16_t>& values) {
  uint64_t hash = values.size();
  for (const uint16_t value : values) hash = mix(hash ^ value);
  return hash;
}

void print_bits(const std::string& part, const char* kernel) {
  size_t count = 0;
  for (Case c : all_cases()) {
    if (c.name.find(part) == std::string::npos) continue;
    c.policy.kernel = kernel;
    const Run run(c);
    const moe::CudaLayer layer(c.config, run.weights(), c.policy);
    const Memory workspace(layer.workspace_bytes(c.num_tokens));
    try {
      layer.run(run.inputs(), workspace.get(), workspace.bytes(), nullptr);
    } catch (const Error&) {
      if (kernel == nullptr) throw;
      continue;
    }
    const std::vector<uint16_t> out = run.output();
    std::printf("case %s\t%016llx\n", c.name.c_str(), static_cast<unsigned long long>(hash_of(out)));
    ++count;
  }
  std::printf("cases %zu\n", count);
}

struct TimedCase {
  const char* preset;
  int32_t num_tokens;
};

constexpr TimedCase kTimedCases[] = {
    {"qwen3-30b", 1}, {"qwen3-30b", 32}, {"qwen3-30b", 4096}, {"mixtral-8x7b", 4096}, {"qwen2-57b", 4096}};
constexpr size_t kSmallSets = 16;       // routings in turn of a small batch: its weights must not stay in L2
constexpr double kBlockSeconds = 0.06;  // of a timed block
constexpr int kBlocks = 15;

double microseconds_a_run(const moe::CudaLayer& layer, const Run& run, const Memory& workspace, int count) {
  cudaEvent_t begin{}, end{};
  check(cudaEventCreate(&begin), "create an event");
  check(cudaEventCreate(&end), "create an event");
  check(cudaEventRecord(begin, nullptr), "record an event");
  for (int i = 0; i < count; ++i)
    layer.run(run.inputs(static_cast<size_t>(i)), workspace.get(), workspace.bytes(), nullptr);
  check(cudaEventRecord(end, nullptr), "record an event");
  check(cudaEventSynchronize(end), "run the layer");
  float milliseconds = 0.0f;
  check(cudaEventElapsedTime(&milliseconds, begin, end), "read the time");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return 1e3 * milliseconds / count;
}

void print_times() {
  for (const TimedCase& timed : kTimedCases) {
    Case c;
    c.config = moe::find_preset(timed.preset).config;
    c.num_tokens = timed.num_tokens;
    Run run(c);
    for (size_t set = 1; timed.num_tokens <= 64 && set < kSmallSets; ++set) run.add_ids(make_ids(c, set + 1));
    const moe::CudaLayer layer(c.config, run.weights(), c.policy);
    const Memory workspace(layer.workspace_bytes(c.num_tokens));
    microseconds_a_run(layer, run, workspace, 20);
    const double guess = microseconds_a_run(layer, run, workspace, 20);
    const int count = std::max(16, static_cast<int>(kBlockSeconds * 1e6 / guess));
    std::vector<double> blocks;
    for (int block = 0; block < kBlocks; ++block) blocks.push_back(microseconds_a_run(layer, run, workspace, count));
    std::sort(blocks.begin(), blocks.end());
    std::printf("time %s %d\t%.2f\n", timed.preset, timed.num_tokens, blocks[kBlocks / 2]);
  }
}

}  // namespace
}  // namespace tessera::output_bits

int main(int argc, char** argv) {
  try {
    if (argc == 2 && std::string_view(argv[1]) == "--time") {
      tessera::output_bits::print_times();
    } else if (argc == 3 && std::string_view(argv[1]) == "--kernel") {
      tessera::output_bits::print_bits("", argv[2]);
    } else {
      tessera::output_bits::print_bits(argc == 2 ? argv[1] : "", nullptr);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "output_bits: %s\n", error.what());
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
