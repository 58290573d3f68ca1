// The CUDA measurements of `tessera bench classify`.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "classify_bench.h"
#include "classify_blocks.h"
#include "cuda_classify_limits.h"
#include "cuda_device.h"
#include "cuda_monitor.h"
#include "option_text.h"
#include "tessera/core/error.h"
#include "text_format.h"

namespace tessera::cli {
namespace {

using classifier::CudaClassifier;
using classifier::Form;
using classifier::InputKind;
using classifier::Precision;

constexpr int kLanes = 2;                           // of a device: copies of one run beside the end of the other's
constexpr int64_t kSlice = 4096, kIdSlice = 65536;  // sentences of one run in a sustained block
constexpr int64_t kIdRowsALane = 131072;            // fewer would measure the start of a run
constexpr int64_t kResidentStep = 65536;            // sentences between two synchronisations
constexpr int64_t kFillSentences = 512;             // converted on the host at a time

using Lanes = std::vector<std::unique_ptr<CudaClassifier>>;

/// Sentences [begin, end).
struct Range {
  int64_t begin = 0, end = 0;

  int64_t count() const { return end - begin; }
};

/// Share `i` of `num_shares` nearly equal ones.
Range share_of(const Range& whole, int64_t i, int64_t num_shares) {
  return {whole.begin + whole.count() * i / num_shares, whole.begin + whole.count() * (i + 1) / num_shares};
}

/// fp32 of the logits of `num_sentences`, all bits set: a logit that nothing writes is no number.
class HostLogits {
 public:
  HostLogits(int64_t num_sentences, int64_t num_classes)
      : num_classes_(num_classes), memory_(static_cast<size_t>(num_sentences * num_classes) * sizeof(float)) {
    std::memset(memory_.get(), 0xFF, memory_.bytes());
  }

  float* at(int64_t sentence) const { return static_cast<float*>(memory_.get()) + sentence * num_classes_; }
  std::span<const float> all() const { return {at(0), memory_.bytes() / sizeof(float)}; }

 private:
  int64_t num_classes_;
  PinnedMemory memory_;
};

/// What lies in host memory for one path: batches of it, and where their logits go.
struct HostInput {
  const float* embeddings = nullptr;  ///< [.., sentence_size], or
  const int32_t* ids = nullptr;       ///< [.., sequence_length]
  int64_t row_size = 0;

  double run(CudaClassifier& lane, const Range& rows, const HostLogits& logits) const {
    classifier::Batch batch;
    batch.num_sentences = rows.count();
    if (embeddings != nullptr) batch.embeddings = embeddings + rows.begin * row_size;
    if (ids != nullptr) batch.ids = ids + rows.begin * row_size;
    classifier::Outputs outputs;
    outputs.logits = logits.at(rows.begin);
    lane.run(batch, outputs);
    return static_cast<double>(rows.count());
  }
};

/// One device's share of the 16-bit embeddings, and its logits.
struct ResidentInput {
  Range rows;
  DeviceMemory embeddings;  ///< [rows, sequence_length, padded_channels]
  DeviceMemory logits;      ///< [rows, num_classes]
};

class CudaClassifyBench : public ClassifyBench {
 public:
  CudaClassifyBench(std::shared_ptr<ClassifyData> data, const ClassifyBenchOptions& options);

  std::string impossible(const ClassifyCase& asked) const override;
  ClassifyResult measure(const ClassifyCase& asked) override;
  std::vector<std::pair<std::string, std::string>> description() const override;

 private:
  int64_t num_devices() const { return static_cast<int64_t>(options_.devices.size()); }
  int64_t num_classes() const { return data_->model()->config.num_classes; }

  std::vector<Lanes> make_lanes(const ClassifyCase& asked, int num_lanes, ClassifyResult& result) const;
  void measure_host(const ClassifyCase& asked, ClassifyResult& result);
  void measure_resident(const ClassifyCase& asked, ClassifyResult& result);
  /// Latency with one lane of each device, then turns of all lanes and the limit.
  void measure_lanes(const std::vector<Lanes>& lanes, const HostInput& input, int64_t num_rows, int64_t slice,
                     const HostLogits& once, const HostLogits& sustained, const std::vector<Worker>& limit,
                     ClassifyResult& result);
  ResidentInput make_resident(size_t device, const CudaClassifier& lane, DType dtype);
  void take(const Turns& turns, ClassifyResult& result) const;
  Watch watch();
  const PinnedMemory& pinned_embeddings();

  std::shared_ptr<ClassifyData> data_;
  ClassifyBenchOptions options_;
  std::vector<std::unique_ptr<DeviceMonitor>> monitors_;  // one a device
  std::vector<cudaDeviceProp> properties_;                // one a device
  PinnedMemory pinned_;                                   // embeddings, filled by the first case that needs them
};

CudaClassifyBench::CudaClassifyBench(std::shared_ptr<ClassifyData> data, const ClassifyBenchOptions& options)
    : data_(std::move(data)), options_(options) {
  for (const int device : options_.devices) {
    std::array<char, 32> id{};
    require_cuda(cudaDeviceGetPCIBusId(id.data(), static_cast<int>(id.size()), device), "read a device's address");
    monitors_.push_back(std::make_unique<DeviceMonitor>(id.data()));
    require_cuda(cudaGetDeviceProperties(&properties_.emplace_back(), device), "read a device's properties");
  }
  if (data_->num_sentences() < num_devices() * kLanes)
    throw Error("--sentences", str_cat(data_->num_sentences()),
                str_cat("at least ", num_devices() * kLanes, ", one for each lane"));
}

std::string CudaClassifyBench::impossible(const ClassifyCase& asked) const {
  if (asked.path == Path::resident && asked.precision == Precision::fp32)
    return "embeddings in device memory are fp16 or bf16";
  if (asked.path != Path::ids && asked.form == Form::vocab) return "a vocabulary is projected for token ids only";
  return "";
}

std::vector<std::pair<std::string, std::string>> CudaClassifyBench::description() const {
  int runtime = 0, driver = 0;
  require_cuda(cudaRuntimeGetVersion(&runtime), "read the runtime's version");
  require_cuda(cudaDriverGetVersion(&driver), "read the driver's version");
  std::vector<std::pair<std::string, std::string>> lines;
  for (size_t i = 0; i < properties_.size(); ++i) {
    const cudaDeviceProp& device = properties_[i];
    lines.emplace_back(
        str_cat("GPU ", options_.devices[i]),
        format_text("%s, %d multiprocessors, %.1f GiB, L2 %.0f MiB", device.name, device.multiProcessorCount,
                    static_cast<double>(device.totalGlobalMem) / (1 << 30), device.l2CacheSize / 1048576.0));
  }
  lines.emplace_back("CUDA", format_text("runtime %d.%d, driver's %d.%d", runtime / 1000, runtime % 1000 / 10,
                                         driver / 1000, driver % 1000 / 10));
  for (auto& line : monitors_.front()->description()) lines.push_back(std::move(line));
  lines.emplace_back("host", str_cat(available_processors(), " processors"));
  return lines;
}

std::vector<Lanes> CudaClassifyBench::make_lanes(const ClassifyCase& asked, int num_lanes,
                                                 ClassifyResult& result) const {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<Lanes> lanes;
  for (const int device : options_.devices) {
    classifier::CudaOptions wanted;
    wanted.input = asked.path == Path::ids ? InputKind::ids : InputKind::embeddings;
    wanted.precision = {.convolutions = asked.precision, .experts = asked.precision, .head = asked.precision};
    wanted.form = asked.form;
    wanted.device = device;
    wanted.micro_batch = options_.micro_batch;
    wanted.num_lanes = num_lanes;
    wanted.num_staging_threads = options_.num_threads;
    lanes.push_back(
        with_options_named({"form"}, [&] { return classifier::make_cuda_classifiers(data_->model(), wanted); }));
  }
  result.setup_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  result.description = lanes.front().front()->description();
  result.device_bytes = lanes.front().front()->device_bytes();
  result.num_lanes = num_lanes;
  return lanes;
}

Watch CudaClassifyBench::watch() {
  return {.begin =
              [this] {
                for (const auto& monitor : monitors_) monitor->start();
              },
          .end =
              [this] {
                std::vector<DeviceState> states;
                for (const auto& monitor : monitors_) {
                  if (const auto state = monitor->stop()) states.push_back(*state);
                }
                return states;
              }};
}

void CudaClassifyBench::take(const Turns& turns, ClassifyResult& result) const {
  result.num_blocks = turns.num_blocks;
  result.seconds_a_block = turns.seconds_a_block;
  result.rate = turns.rate;
  result.states = turns.states;
  if (!result.limit) return;
  const double needed = result.limit->per_sentence;
  result.limit->rate = turns.limit_rate;
  result.limit->fraction = {turns.ratio.median * needed, turns.ratio.low * needed, turns.ratio.high * needed};
}

void CudaClassifyBench::measure_lanes(const std::vector<Lanes>& lanes, const HostInput& input, int64_t num_rows,
                                      int64_t slice, const HostLogits& once, const HostLogits& sustained,
                                      const std::vector<Worker>& limit, ClassifyResult& result) {
  std::vector<Worker> one_lane, all_lanes;
  for (size_t device = 0; device < lanes.size(); ++device) {
    const Range rows = share_of({0, data_->num_sentences()}, static_cast<int64_t>(device), num_devices());
    one_lane.push_back({.step = [&, device, rows](int64_t) { return input.run(*lanes[device][0], rows, once); }});
    for (size_t i = 0; i < lanes[device].size(); ++i) {
      const auto share_idx = static_cast<int64_t>(all_lanes.size());
      const Range share = share_of({0, num_rows}, share_idx, num_devices() * kLanes);
      const int64_t num_slices = (share.count() + slice - 1) / slice;
      CudaClassifier* const lane = lanes[device][i].get();
      const auto step = [&, lane, share, num_slices](int64_t n) {
        return input.run(*lane, share_of(share, n % num_slices, num_slices), sustained);
      };
      all_lanes.push_back({.step = step, .fewest_steps = num_slices});  // so that every logit is written
    }
  }
  result.latency_seconds = repeated_seconds(one_lane);
  run_block(all_lanes, 0.0);  // warms the other lanes up
  take(take_turns(all_lanes, limit, options_.seconds, watch()), result);
}

const PinnedMemory& CudaClassifyBench::pinned_embeddings() {
  if (pinned_.bytes() == 0) {
    pinned_ = PinnedMemory(static_cast<size_t>(data_->num_sentences() * data_->sentence_size()) * sizeof(float));
    data_->fill(0, data_->num_sentences(), static_cast<float*>(pinned_.get()));
  }
  return pinned_;
}

/// Bytes that the windows of a sentence read from a projected vocabulary: for each position of each filter width, a
/// row of every tap.
double gather_bytes(const classifier::ClassifierConfig& config, size_t element_bytes) {
  int64_t rows = 0;
  for (const int64_t width : config.filter_widths) rows += (config.sequence_length - width + 1) * width;
  return static_cast<double>(rows * config.num_filters) * static_cast<double>(element_bytes);
}

void CudaClassifyBench::measure_host(const ClassifyCase& asked, ClassifyResult& result) {
  const bool from_ids = asked.path == Path::ids;
  const int64_t count = data_->num_sentences(), num_lanes = num_devices() * kLanes;
  const int64_t num_rows = from_ids ? std::max(count, num_lanes * kIdRowsALane) : count;
  HostInput input;
  PinnedMemory pinned_ids;
  std::vector<Worker> limit;
  if (from_ids) {
    const std::vector<int32_t>& ids = data_->ids();
    pinned_ids = PinnedMemory(static_cast<size_t>(num_rows * data_->sequence_length()) * sizeof(int32_t));
    auto* const rows = static_cast<int32_t*>(pinned_ids.get());
    for (size_t i = 0; i < pinned_ids.bytes() / sizeof(int32_t); ++i) rows[i] = ids[i % ids.size()];
    input = {.ids = rows, .row_size = data_->sequence_length()};
    const size_t element_bytes = asked.precision == Precision::fp32 ? sizeof(float) : sizeof(uint16_t);
    limit = memory_limit(options_.devices);
    result.limit = {.what = "device memory, read and written",
                    .unit = "B",
                    .per_sentence = gather_bytes(data_->model()->config, element_bytes)};
  } else {
    input = {.embeddings = static_cast<const float*>(pinned_embeddings().get()), .row_size = data_->sentence_size()};
    limit = copy_limit(options_.devices, pinned_);
    result.limit = {.what = "host-to-device copies",
                    .unit = "B",
                    .per_sentence = static_cast<double>(data_->sentence_size()) * sizeof(float)};
  }
  const std::vector<Lanes> lanes = make_lanes(asked, kLanes, result);
  const HostLogits once(count, num_classes()), sustained(num_rows, num_classes());
  measure_lanes(lanes, input, num_rows, from_ids ? kIdSlice : kSlice, once, sustained, limit, result);
  result.check = check_classified(*data_, from_ids ? InputKind::ids : InputKind::embeddings, DType::f32,
                                  precision_name(asked.precision), options_.num_checked, options_.num_threads,
                                  {once.all(), sustained.all()});
}

ResidentInput CudaClassifyBench::make_resident(size_t device, const CudaClassifier& lane, DType dtype) {
  require_cuda(cudaSetDevice(options_.devices[device]), "use a device");
  const int64_t row_size = data_->sequence_length() * lane.padded_channels();
  const size_t row_bytes = static_cast<size_t>(row_size) * sizeof(uint16_t);
  ResidentInput input;
  input.rows = share_of({0, data_->num_sentences()}, static_cast<int64_t>(device), num_devices());
  input.embeddings = DeviceMemory(static_cast<size_t>(input.rows.count()) * row_bytes);
  input.logits = DeviceMemory(static_cast<size_t>(input.rows.count() * num_classes()) * sizeof(float));
  std::vector<uint16_t> part(static_cast<size_t>(std::min(kFillSentences, input.rows.count()) * row_size));
  for (int64_t done = 0; done < input.rows.count(); done += kFillSentences) {
    const int64_t count = std::min(kFillSentences, input.rows.count() - done);
    data_->fill_resident(input.rows.begin + done, count, dtype, lane.padded_channels(), part.data());
    require_cuda(cudaMemcpy(input.embeddings.at(static_cast<size_t>(done) * row_bytes), part.data(),
                            static_cast<size_t>(count) * row_bytes, cudaMemcpyHostToDevice),
                 "copy embeddings");
  }
  return input;
}

void CudaClassifyBench::measure_resident(const ClassifyCase& asked, ClassifyResult& result) {
  const DType dtype = asked.precision == Precision::bf16 ? DType::bf16 : DType::f16;
  const std::vector<Lanes> lanes = make_lanes(asked, 1, result);
  std::vector<ResidentInput> inputs;
  std::vector<Worker> once, sustained;
  for (size_t device = 0; device < lanes.size(); ++device)
    inputs.push_back(make_resident(device, *lanes[device][0], dtype));
  for (size_t device = 0; device < lanes.size(); ++device) {
    const ResidentInput* const input = &inputs[device];
    CudaClassifier* const lane = lanes[device][0].get();
    const auto enqueue = [input, lane](int64_t runs) {
      for (int64_t i = 0; i < runs; ++i)
        lane->enqueue_resident(input->embeddings.get(), input->rows.count(), static_cast<float*>(input->logits.get()));
      lane->synchronize();
      return static_cast<double>(runs * input->rows.count());
    };
    once.push_back({.step = [enqueue](int64_t) { return enqueue(1); }});
    const int64_t runs = std::max<int64_t>(1, kResidentStep / input->rows.count());
    sustained.push_back({.step = [enqueue, runs](int64_t) { return enqueue(runs); }});
  }
  const auto collect = [&] {
    std::vector<float> values(static_cast<size_t>(data_->num_sentences() * num_classes()));
    for (size_t device = 0; device < inputs.size(); ++device) {
      const ResidentInput& input = inputs[device];
      require_cuda(cudaSetDevice(options_.devices[device]), "use a device");
      require_cuda(cudaMemcpy(values.data() + input.rows.begin * num_classes(), input.logits.get(),
                              input.logits.bytes(), cudaMemcpyDeviceToHost),
                   "copy logits");
      require_cuda(cudaMemset(input.logits.get(), 0xFF, input.logits.bytes()), "fill logits");  // no numbers
      require_cuda(cudaDeviceSynchronize(), "fill logits");
    }
    return values;
  };
  collect();  // only fills
  result.latency_seconds = repeated_seconds(once);
  const std::vector<float> first = collect();
  const auto flops = static_cast<double>(data_->model()->config.flops_per_sentence());
  std::string library;
  const std::vector<Worker> limit = dense_limit(options_.devices, dtype, library);
  if (limit.empty()) {
    result.why_no_limit = library;
  } else {
    result.limit = {.what = "dense products by " + library, .unit = "FLOP", .per_sentence = flops};
  }
  take(take_turns(sustained, limit, options_.seconds, watch()), result);
  const std::vector<float> last = collect();
  result.check = check_classified(*data_, InputKind::embeddings, dtype, precision_name(asked.precision),
                                  options_.num_checked, options_.num_threads, {first, last});
}

ClassifyResult CudaClassifyBench::measure(const ClassifyCase& asked) {
  ClassifyResult result;
  result.num_sentences = data_->num_sentences();
  if (asked.path == Path::resident) {
    measure_resident(asked, result);
  } else {
    measure_host(asked, result);
  }
  return result;
}

}  // namespace

std::unique_ptr<ClassifyBench> make_cuda_classify_bench(std::shared_ptr<ClassifyData> data,
                                                        const ClassifyBenchOptions& options) {
  return std::make_unique<CudaClassifyBench>(std::move(data), options);
}

}  // namespace tessera::cli
