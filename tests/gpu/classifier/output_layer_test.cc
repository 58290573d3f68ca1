// The last linear layer against fp64.
#include "cuda/kernels/output_layer/launch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "gpu/classifier/operand_buffer.h"

namespace tessera::testing {
namespace {

namespace output_layer = kernels::output_layer;

struct LayerCase {
  int32_t records = 5;
  int32_t features = 100;
  int32_t classes = 2;
  int32_t stride = 104;

  friend std::ostream& operator<<(std::ostream& out, const LayerCase& c) {
    return out << "N " << c.records << " features " << c.features << " classes " << c.classes << " stride " << c.stride;
  }
};

/// Changes to the reference: what a wrong kernel might compute.
enum class Planted { nothing, last_feature_missing, bias_forgotten, next_class };

class LayerRun {
 public:
  explicit LayerRun(const LayerCase& c, uint32_t seed = 1)
      : case_(c),
        x_(static_cast<size_t>(c.records) * static_cast<size_t>(c.stride), std::numeric_limits<float>::quiet_NaN()),
        weight_(static_cast<size_t>(c.classes) * static_cast<size_t>(c.features)),
        bias_(static_cast<size_t>(c.classes)),
        device_x_(x_.size() * sizeof(float)),
        device_weight_(weight_.size() * sizeof(float)),
        device_bias_(bias_.size() * sizeof(float)),
        device_logits_(num_logits() * sizeof(float)) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    for (int32_t record = 0; record < c.records; ++record) {
      for (int32_t i = 0; i < c.features; ++i) x_[x_index(record, i)] = normal(rng);
    }
    for (float& w : weight_) w = normal(rng);
    for (float& b : bias_) b = normal(rng);
    device_x_.upload(x_);
    device_weight_.upload(weight_);
    device_bias_.upload(bias_);
  }

  output_layer::Args args() const {
    return {static_cast<const float*>(device_x_.data()),
            case_.stride,
            static_cast<const float*>(device_weight_.data()),
            static_cast<const float*>(device_bias_.data()),
            static_cast<float*>(device_logits_.data()),
            case_.records,
            case_.features,
            case_.classes};
  }

  void run() {
    device_logits_.poison();
    output_layer::launch(args(), nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    EXPECT_TRUE(device_logits_.guards_intact()) << case_;
    logits = device_logits_.download<float>(num_logits());
  }

  /// What is wrong with the logits; empty when nothing is.
  std::string problem(Planted planted = Planted::nothing) const {
    for (int32_t record = 0; record < case_.records; ++record) {
      for (int32_t c = 0; c < case_.classes; ++c) {
        const int32_t row = planted == Planted::next_class ? (c + 1) % case_.classes : c;
        const double bias = planted == Planted::bias_forgotten ? 0.0 : bias_[static_cast<size_t>(c)];
        double want = bias;
        double magnitude = std::fabs(bias);
        for (int32_t i = 0; i < case_.features - (planted == Planted::last_feature_missing ? 1 : 0); ++i) {
          const double term =
              static_cast<double>(x_[x_index(record, i)]) *
              weight_[static_cast<size_t>(row) * static_cast<size_t>(case_.features) + static_cast<size_t>(i)];
          want += term;
          magnitude += std::fabs(term);
        }
        // A term passes through at most features / 32 + 7 roundings; random ones nearly cancel, so 4 units are plenty.
        const float got = logits[static_cast<size_t>(record * case_.classes + c)];
        if (!(std::fabs(got - want) <= 4 * 0x1p-24 * magnitude))
          return str_cat("record ", record, " class ", c, ": got ", got, ", expected ", want);
      }
    }
    return "";
  }

  void set_x(int32_t record, int32_t feature, float value) {
    x_[x_index(record, feature)] = value;
    device_x_.upload(x_);
  }
  void copy_record(const LayerRun& from, int32_t record) {
    for (int32_t i = 0; i < case_.features; ++i) x_[x_index(0, i)] = from.x_[from.x_index(record, i)];
    device_x_.upload(x_);
    device_weight_.upload(from.weight_);
    device_bias_.upload(from.bias_);
  }

  std::vector<float> logits;

 private:
  size_t num_logits() const { return static_cast<size_t>(case_.records) * static_cast<size_t>(case_.classes); }
  size_t x_index(int32_t record, int32_t feature) const {
    return static_cast<size_t>(record) * static_cast<size_t>(case_.stride) + static_cast<size_t>(feature);
  }

  LayerCase case_;
  std::vector<float> x_, weight_, bias_;
  GuardedBuffer device_x_, device_weight_, device_bias_, device_logits_;
};

void expect_right(const LayerCase& c) {
  LayerRun run(c);
  run.run();
  EXPECT_EQ(run.problem(), "") << c;
}

TEST(ClassifierSmall, OutputLayer) {
  expect_right({.records = 3, .features = 5, .classes = 2, .stride = 8});
  expect_right({.records = 9, .features = 33, .classes = 5, .stride = 40});
}

TEST(OutputLayer, EveryShape) {
  for (const int32_t records : {1, 7, 8, 9, 130}) {
    for (const int32_t features : {1, 31, 32, 33, 100, 512, 1000}) {
      for (const int32_t classes : {1, 2, 3, 4, 5, 64})
        expect_right({.records = records, .features = features, .classes = classes, .stride = features + features % 8});
    }
  }
  expect_right({.records = 3, .features = 64, .classes = 1000, .stride = 64});
  expect_right({.records = 4096, .features = 512, .classes = 2, .stride = 512});
}

TEST(OutputLayer, IntegersAreExact) {
  const LayerCase c{.records = 2, .features = 300, .classes = 2, .stride = 304};
  LayerRun run(c);
  GuardedBuffer x(2 * 304 * sizeof(float)), weight(2 * 300 * sizeof(float)), bias(2 * sizeof(float));
  std::vector<float> x_values(2 * 304), weight_values(2 * 300);
  for (size_t i = 0; i < x_values.size(); ++i) x_values[i] = static_cast<float>(i % 9) - 4.0f;
  for (size_t i = 0; i < weight_values.size(); ++i) weight_values[i] = static_cast<float>(i % 5) - 2.0f;
  x.upload(x_values);
  weight.upload(weight_values);
  bias.upload(std::vector<float>{3.0f, -7.0f});
  output_layer::Args args = run.args();
  args.x = static_cast<const float*>(x.data());
  args.weight = static_cast<const float*>(weight.data());
  args.bias = static_cast<const float*>(bias.data());
  GuardedBuffer logits(4 * sizeof(float));
  args.logits = static_cast<float*>(logits.data());
  output_layer::launch(args, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  const std::vector<float> got = logits.download<float>(4);
  for (size_t record = 0; record < 2; ++record) {
    for (size_t k = 0; k < 2; ++k) {
      float sum = k == 0 ? 3.0f : -7.0f;
      for (size_t i = 0; i < 300; ++i) sum += x_values[record * 304 + i] * weight_values[k * 300 + i];
      EXPECT_EQ(got[record * 2 + k], sum);
    }
  }
}

TEST(OutputLayer, NanStaysInItsRecord) {
  LayerRun run({.records = 20});
  run.run();
  const std::vector<float> clean = run.logits;
  run.set_x(13, 99, std::numeric_limits<float>::quiet_NaN());
  run.run();
  for (size_t i = 0; i < clean.size(); ++i) {
    if (i / 2 == 13) {
      EXPECT_TRUE(std::isnan(run.logits[i]));
    } else {
      EXPECT_EQ(run.logits[i], clean[i]);
    }
  }
}

TEST(OutputLayer, NeighboursDoNotChangeBits) {
  const LayerCase c{.records = 21, .features = 333, .classes = 3, .stride = 336};
  LayerRun batch(c);
  batch.run();
  LayerCase alone = c;
  alone.records = 1;
  LayerRun single(alone);
  for (const int32_t record : {0, 7, 20}) {
    single.copy_record(batch, record);
    single.run();
    for (size_t k = 0; k < 3; ++k) {
      EXPECT_EQ(std::bit_cast<uint32_t>(single.logits[k]),
                std::bit_cast<uint32_t>(batch.logits[static_cast<size_t>(record) * 3 + k]));
    }
  }
}

TEST(OutputLayer, EveryRunHasTheSameBits) {
  LayerRun run({.records = 500, .features = 512, .classes = 5, .stride = 512});
  run.run();
  const std::vector<float> first = run.logits;
  for (int repeat = 0; repeat < 4; ++repeat) {
    run.run();
    ASSERT_EQ(run.logits, first);  // no NaN among them
  }
}

TEST(OutputLayer, TheComparisonSeesErrors) {
  LayerRun run({.records = 6});
  run.run();
  ASSERT_EQ(run.problem(), "");
  for (const Planted planted : {Planted::last_feature_missing, Planted::bias_forgotten, Planted::next_class})
    EXPECT_NE(run.problem(planted), "") << static_cast<int>(planted);
  const std::vector<float> logits = run.logits;
  run.logits[11] *= 1.0001f;
  EXPECT_NE(run.problem(), "");
  run.logits = logits;
  std::swap(run.logits[2], run.logits[4]);
  EXPECT_NE(run.problem(), "");
  run.logits.assign(logits.size(), 0.0f);
  EXPECT_NE(run.problem(), "");
}

TEST(OutputLayer, BadArgumentsAreNamed) {
  const LayerRun run({.records = 2});
  const auto error = [&](const auto& change) {
    output_layer::Args args = run.args();
    change(args);
    return error_of([&] { output_layer::launch(args, nullptr); });
  };
  using Args = output_layer::Args;
  EXPECT_EQ(error([](Args& a) { a.num_records = -1; }).find("output_layer num_records"), 0u);
  EXPECT_EQ(error([](Args& a) { a.in_features = 0; }).find("output_layer in_features"), 0u);
  EXPECT_EQ(error([](Args& a) { a.num_classes = 0; }).find("output_layer num_classes"), 0u);
  EXPECT_EQ(error([](Args& a) { a.stride = 99; }).find("output_layer stride"), 0u);
  EXPECT_EQ(error([](Args& a) { a.x = nullptr; }).find("output_layer x"), 0u);
  EXPECT_EQ(error([](Args& a) { a.weight = nullptr; }).find("output_layer weight"), 0u);
  EXPECT_EQ(error([](Args& a) { a.bias = nullptr; }).find("output_layer bias"), 0u);
  EXPECT_EQ(error([](Args& a) { a.logits = nullptr; }).find("output_layer logits"), 0u);
  EXPECT_EQ(error([](Args& a) { a = Args{}; }), "no error");  // no records
}

}  // namespace
}  // namespace tessera::testing
