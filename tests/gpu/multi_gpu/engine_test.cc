// The engine over several GPUs: the same bits in input order whatever their number, every GPU taking part.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <mutex>

#include "io/records.h"
#include "tessera/classifier/cuda_classifier.h"
#include "tessera/classifier/engine.h"
#include "tessera/cuda/device.h"
#include "unit/classifier/random_model.h"

namespace tessera::classifier {
namespace {

using testing::embed;
using testing::odd_config;
using testing::random_ids;
using testing::random_model;

constexpr int kLanes = 2;

std::vector<int> usable_devices() {
  std::string why_none;
  std::vector<int> devices;
  for (const cuda::DeviceFacts& device : cuda::devices(why_none)) {
    if (cuda::why_unusable(device).empty()) devices.push_back(device.index);
  }
  return devices;
}

// Records from memory.
class MemoryReader final : public io::RecordReader {
 public:
  MemoryReader(const ClassifierConfig& config, InputKind input, const std::vector<int32_t>& ids,
               const std::vector<float>& embeddings)
      : input_(input),
        length_(config.sequence_length),
        record_size_(config.sequence_length * config.embedding_size),
        ids_(ids),
        embeddings_(embeddings),
        count_(static_cast<int64_t>(ids.size()) / config.sequence_length) {}

  bool next(int64_t max_records, io::RecordBatch& batch) override {
    batch = {};
    batch.first_index = next_;
    batch.num_records = std::min(max_records, count_ - next_);
    if (batch.num_records == 0) return false;
    const auto n = static_cast<size_t>(batch.num_records);
    batch.errors.resize(n);
    if (input_ == InputKind::ids) {
      batch.ids = Buffer<int32_t>(n * static_cast<size_t>(length_));
      std::copy_n(ids_.begin() + next_ * length_, batch.ids.size(), batch.ids.begin());
    } else {
      batch.embeddings = Buffer<float>(n * static_cast<size_t>(record_size_));
      std::copy_n(embeddings_.begin() + next_ * record_size_, batch.embeddings.size(), batch.embeddings.begin());
    }
    next_ += batch.num_records;
    return true;
  }
  int64_t skip(int64_t count) override {
    const int64_t skipped = std::min(count, count_ - next_);
    next_ += skipped;
    return skipped;
  }
  int64_t num_records_hint() const override { return count_; }
  int64_t bytes_read() const override { return 0; }
  int64_t num_bytes_hint() const override { return -1; }

 private:
  InputKind input_;
  int64_t length_, record_size_;
  const std::vector<int32_t>& ids_;
  const std::vector<float>& embeddings_;
  int64_t count_;
  int64_t next_ = 0;
};

struct Labels : ResultSink {
  void write(const RecordResult& result) override {
    ASSERT_EQ(result.index, static_cast<int64_t>(num_records));
    ASSERT_TRUE(result.error.empty()) << result.error;
    logits.insert(logits.end(), result.logits.begin(), result.logits.end());
    ++num_records;
  }
  std::vector<float> logits;
  int64_t num_records = 0;
};

// Counts the sentences that each device labels.
class Counted final : public Classifier {
 public:
  Counted(std::unique_ptr<CudaClassifier> inner, std::map<int, int64_t>& counts, std::mutex& mutex)
      : inner_(std::move(inner)), counts_(counts), mutex_(mutex) {}
  void run(const Batch& batch, const Outputs& outputs) override {
    inner_->run(batch, outputs);
    const std::lock_guard lock(mutex_);
    counts_[inner_->device()] += batch.num_sentences;
  }
  std::string description() const override { return inner_->description(); }
  int64_t preferred_batch() const override { return inner_->preferred_batch(); }

 private:
  std::unique_ptr<CudaClassifier> inner_;
  std::map<int, int64_t>& counts_;
  std::mutex& mutex_;
};

struct Fleet {
  std::map<int, int64_t> counts;
  std::mutex mutex;
  Labels labels;

  RunStatistics run(const std::shared_ptr<const Model>& model, CudaOptions options, const std::vector<int>& devices,
                    int64_t batch_size, const std::vector<int32_t>& ids, const std::vector<float>& embeddings) {
    std::vector<std::unique_ptr<Classifier>> classifiers;
    for (const int device : devices) {
      options.device = device;
      options.num_lanes = kLanes;
      for (auto& lane : make_cuda_classifiers(model, options)) {
        classifiers.push_back(std::make_unique<Counted>(std::move(lane), counts, mutex));
      }
    }
    Engine engine(model, std::move(classifiers), {.batch_size = batch_size});
    MemoryReader reader(model->config, options.input, ids, embeddings);
    return engine.run(reader, labels);
  }
};

ClassifierConfig config_like_apws25() {
  ClassifierConfig config = odd_config();
  config.vocab_size = 500;
  config.embedding_size = 256;
  config.sequence_length = 16;
  config.filter_widths = {3, 5, 7, 9};
  config.num_filters = 128;
  config.num_experts = 4;
  config.expert_size = 128;
  config.head_sizes = {64, 32};
  return config;
}

void expect_same_bits_on_any_number(const ClassifierConfig& config, int64_t num_sentences,
                                    const std::vector<Form>& forms) {
  const std::vector<int> all = usable_devices();
  ASSERT_GE(all.size(), 2u) << "this suite needs two GPUs or more";
  const auto model = random_model(config, 3);
  const std::vector<int32_t> ids = random_ids(config, num_sentences, 4);
  const std::vector<float> embeddings = embed(*model, ids);
  for (const InputKind input : {InputKind::ids, InputKind::embeddings}) {
    for (const Form form : forms) {
      if (form == Form::vocab && input == InputKind::embeddings) continue;
      const CudaOptions options{.input = input, .form = form, .micro_batch = 64};
      Fleet one;
      one.run(model, options, {all.front()}, 128, ids, embeddings);
      ASSERT_EQ(one.labels.num_records, num_sentences);
      for (size_t count = 2; count <= all.size(); count *= 2) {
        for (const int64_t batch_size : {64, 100}) {
          Fleet fleet;
          const RunStatistics statistics =
              fleet.run(model, options, {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count)}, batch_size,
                        ids, embeddings);
          EXPECT_EQ(statistics.num_ok, num_sentences);
          ASSERT_EQ(fleet.labels.logits.size(), one.labels.logits.size());
          EXPECT_EQ(std::memcmp(fleet.labels.logits.data(), one.labels.logits.data(),
                                one.labels.logits.size() * sizeof(float)),
                    0)
              << count << " GPUs, form " << form_name(form);
          if (num_sentences >= 2000) {
            EXPECT_EQ(fleet.counts.size(), count) << "a GPU did nothing";
          }
        }
      }
    }
  }
}

TEST(MultiGpu, SameBitsOnOneTwoAndFourGpus) {
  expect_same_bits_on_any_number(config_like_apws25(), 6000, {Form::direct, Form::dft, Form::distinct, Form::vocab});
}

TEST(MultiGpuSmall, SameBits) { expect_same_bits_on_any_number(odd_config(), 300, {Form::direct, Form::vocab}); }

}  // namespace
}  // namespace tessera::classifier
