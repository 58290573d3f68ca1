// Layers of e4m3 weights, beside what the battery asks of them: the quantising kernel's bits, rows whose bits
// depend on nothing else, replays with other routing, what the workspace held before.
#include <algorithm>
#include <functional>
#include <limits>
#include <memory>

#include "cuda/core/stream.h"
#include "cuda/kernels/quantize_rows/launch.h"
#include "gpu/captured_graph.h"
#include "gpu/moe/device_activation.h"
#include "gpu/moe/gpu_fixture.h"
#include "moe/judge/exact_layer.h"
#include "tessera/core/thread_pool.h"
#include "tessera/moe/quantize.h"
#include "unit/moe/exact_case.h"
#include "unit/moe/fp8_shard.h"

namespace tessera::testing {
namespace {

LayerCase fp8_case(int32_t hidden, int32_t intermediate, int32_t experts, int32_t top_k, int32_t tokens,
                   const char* routing = "random") {
  LayerCase c{hidden, intermediate, experts, top_k, tokens, routing};
  c.format = moe::WeightFormat::fp8_block;
  return c;
}

// Rows of a few elements of every kind: normal ones, tiny, huge, NaN, infinities.
std::vector<uint16_t> rows_of_every_kind(size_t count, DType dtype, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) {
    const float scale = std::ldexp(1.0f, static_cast<int>(random() % 40) - 30);
    const auto kind = random() % 4000;
    float number = normal(random) * scale;
    if (kind == 0) number = std::numeric_limits<float>::quiet_NaN();
    if (kind == 1) number = std::numeric_limits<float>::infinity();
    if (kind == 2) number = -0.0f;
    value = dtype == DType::bf16 ? f32_to_bf16(number) : f32_to_f16(number);
  }
  return values;
}

// Tokens of two slots: the rows backwards, and every other one of a second set.
struct QuantizeRun {
  QuantizeRun(int32_t rows_, int32_t columns_)
      : rows(rows_),
        columns(columns_),
        groups(scale_groups(columns_)),
        stride(2 * rows_ + 5),
        places(2 * sizeof(int32_t) * static_cast<size_t>(rows_)),
        codes(2 * static_cast<size_t>(rows_) * static_cast<size_t>(columns_)),
        scales(sizeof(float) * static_cast<size_t>(groups) * static_cast<size_t>(stride)) {
    for (int32_t t = 0; t < rows; ++t) {
      token_row.push_back(rows - 1 - t);
      token_row.push_back(t % 2 == 0 ? rows + t : -1);
    }
    places.upload(token_row);
    codes.poison();
    scales.poison();
  }

  kernels::quantize_rows::Args args(const void* tokens, DType dtype) const {
    return {.dtype = dtype,
            .tokens = tokens,
            .token_row = static_cast<const int32_t*>(places.data()),
            .codes = codes.data(),
            .scales = static_cast<float*>(scales.data()),
            .num_tokens = rows,
            .num_slots = 2,
            .columns = columns,
            .scale_stride = stride};
  }

  // Of slot `slot` of a token, its codes [columns] and the scale of each of its groups.
  struct Expected {
    const uint8_t* codes;
    std::function<float(int32_t group)> scale;
  };
  using ExpectedOf = std::function<Expected(int64_t token, size_t slot)>;

  void expect(const ExpectedOf& expected_of) const {
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    const auto got_codes = codes.download<uint8_t>(codes.bytes());
    const auto got = scales.download<float>(scales.bytes() / sizeof(float));
    for (size_t place = 0; place < token_row.size(); ++place) {
      const auto token = static_cast<int64_t>(place / 2);
      const int32_t row = token_row[place];
      if (row < 0) continue;
      const Expected expected = expected_of(token, place % 2);
      ASSERT_TRUE(std::equal(expected.codes, expected.codes + columns, got_codes.begin() + int64_t{row} * columns))
          << rows << " x " << columns << ", token " << token << ", row " << row;
      for (int32_t g = 0; g < groups; ++g) {
        const float wanted = expected.scale(g);
        const float scale = got[static_cast<size_t>(g) * static_cast<size_t>(stride) + static_cast<size_t>(row)];
        ASSERT_TRUE(std::isnan(wanted) ? std::isnan(scale) : wanted == scale)
            << rows << " x " << columns << ", row " << row << ", group " << g << ": " << scale << " for " << wanted;
      }
    }
    EXPECT_TRUE(codes.guards_intact() && scales.guards_intact());
  }

  int32_t rows, columns, groups, stride;
  std::vector<int32_t> token_row;
  GuardedBuffer places, codes, scales;
};

// Widths that end inside a group; a scale each 128 columns, or one for all.
TEST(QuantizeRows, HasTheBitsOfTheHosts) {
  std::mt19937 random(11);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const int32_t columns : {16, 112, 128, 144, 256, 400, 2880, 7168}) {
      for (const int32_t rows : {1, 3, 65, 300}) {
        for (const bool one_scale : {false, true}) {
          const auto count = static_cast<size_t>(rows) * static_cast<size_t>(columns);
          const std::vector<uint16_t> values = rows_of_every_kind(count, dtype, random);
          const int32_t groups = one_scale ? 1 : scale_groups(columns);
          std::vector<uint8_t> codes(count);
          std::vector<float> scales(static_cast<size_t>(rows) * static_cast<size_t>(groups));
          moe::quantize_rows(values.data(), dtype, {rows, columns, one_scale ? kWholeRow : kScaleGroup}, codes.data(),
                             scales.data());
          GuardedBuffer x(2 * count);
          x.upload(values);
          const QuantizeRun run(rows, columns);
          kernels::quantize_rows::Args args = run.args(x.data(), dtype);
          args.one_scale = one_scale;
          kernels::quantize_rows::launch(args, nullptr);
          run.expect([&](int64_t token, size_t) {
            return QuantizeRun::Expected{codes.data() + token * columns, [&, token](int32_t group) {
                                           return scales[static_cast<size_t>(token * groups + (one_scale ? 0 : group))];
                                         }};
          });
        }
      }
    }
  }
}

// One for all, or each expert's own: experts are those of the slots' ids, of which the last have one together.
TEST(QuantizeRows, StaticScales) {
  std::mt19937 random(13);
  for (const int32_t num_scales : {1, 3}) {
    for (const int32_t columns : {16, 144, 2880}) {
      const int32_t rows = 65;
      const auto count = static_cast<size_t>(rows) * static_cast<size_t>(columns);
      const std::vector<uint16_t> values = rows_of_every_kind(count, DType::bf16, random);
      const std::vector<float> given = {0.01f, 0.3f, 1e-4f};
      std::vector<int32_t> ids;
      for (int32_t i = 0; i < 2 * rows; ++i) ids.push_back(static_cast<int32_t>(random() % 5));
      std::vector<std::vector<uint8_t>> codes;
      for (const float scale : given) {
        codes.emplace_back();
        for (const uint16_t value : values)
          codes.back().push_back(e4m3_code(bf16_to_f32(value), e4m3_inverse_scale(scale)));
      }
      GuardedBuffer x(2 * count), device_given(sizeof(float) * given.size()), device_ids(sizeof(int32_t) * ids.size());
      x.upload(values);
      device_given.upload(given);
      device_ids.upload(ids);
      const QuantizeRun run(rows, columns);
      kernels::quantize_rows::Args args = run.args(x.data(), DType::bf16);
      args.one_scale = true;
      args.given_scales = static_cast<const float*>(device_given.data());
      args.num_given_scales = num_scales;
      args.routing.topk_ids = device_ids.data();
      args.routing.num_tokens = rows;
      args.routing.num_slots = 2;
      args.routing.num_experts = 5;
      kernels::quantize_rows::launch(args, nullptr);
      run.expect([&](int64_t token, size_t slot) {
        const int32_t id = ids[static_cast<size_t>(2 * token) + slot];
        const auto own = static_cast<size_t>(std::min(id, num_scales - 1));
        return QuantizeRun::Expected{codes[own].data() + token * columns,
                                     [&given, own](int32_t) { return given[own]; }};
      });
    }
  }
}

// Every slot's row has the token's codes and scales as they were given, numbers that no quantising makes too.
TEST(QuantizeRows, CopiesTokensThatAreQuantised) {
  std::mt19937 random(12);
  for (const int32_t columns : {16, 112, 128, 144, 400, 2880}) {
    for (const int32_t rows : {1, 3, 65}) {
      for (const bool one_scale : {false, true}) {
        const int32_t groups = one_scale ? 1 : scale_groups(columns);
        std::vector<uint8_t> codes(static_cast<size_t>(rows) * static_cast<size_t>(columns));
        std::vector<float> scales(static_cast<size_t>(rows) * static_cast<size_t>(groups));
        for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
        for (float& scale : scales) scale = std::ldexp(1.0f, static_cast<int>(random() % 200) - 100);
        GuardedBuffer x(codes.size()), x_scales(sizeof(float) * scales.size());
        x.upload(codes);
        x_scales.upload(scales);
        const QuantizeRun run(rows, columns);
        kernels::quantize_rows::Args args = run.args(x.data(), DType::bf16);
        args.token_scales = static_cast<const float*>(x_scales.data());
        args.one_scale = one_scale;
        kernels::quantize_rows::launch(args, nullptr);
        run.expect([&](int64_t token, size_t) {
          return QuantizeRun::Expected{codes.data() + token * columns, [&, token](int32_t group) {
                                         return scales[static_cast<size_t>(token * groups + (one_scale ? 0 : group))];
                                       }};
        });
      }
    }
  }
}

// By the recipe they give the bits of a layer that quantises; by other scales those of the host's model.
TEST(ExpertGemmFp8, TokensThatAreQuantised) {
  ThreadPool threads(available_processors());
  for (const DType dtype : {DType::bf16, DType::f16}) {
    LayerCase c = fp8_case(400, 208, 5, 2, 70);
    c.dtype = dtype;
    c.activation = {ActivationKind::relu};
    const LayerData data(c);
    LayerRun run(data);
    std::vector<uint8_t> codes(size_t{70} * 400);
    std::vector<float> scales(size_t{70} * 4);
    moe::quantize_rows(data.x().data(), dtype, {c.tokens, c.hidden}, codes.data(), scales.data());
    const moe::CudaLayer layer(run.config(), run.weights());
    GuardedBuffer x(codes.size()), x_scales(sizeof(float) * scales.size()), workspace(layer.workspace_bytes(c.tokens));
    x.upload(codes);
    const auto given = [&](const void* tokens, const float* token_scales, moe::LayerInputs inputs) {
      inputs.x = tokens;
      inputs.x_scale = token_scales;
      return inputs;
    };
    for (const float factor : {1.0f, 1.625f}) {
      std::vector<float> other = scales;
      for (float& scale : other) scale *= factor;
      x_scales.upload(other);
      const moe::ExactLayer model(data.config(), data.weights(), given(codes.data(), other.data(), data.inputs()),
                                  &threads);
      const auto expected = factor == 1.0f ? run.run() : model.out();
      workspace.poison();
      run.out().poison();
      layer.run(given(x.data(), static_cast<const float*>(x_scales.data()), run.inputs()), workspace.data(),
                workspace.bytes(), nullptr);
      TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
      EXPECT_EQ(difference_of("out", run.out().download<uint16_t>(expected.size()), expected, c.hidden), "")
          << c << ", scales times " << factor;
    }
    EXPECT_TRUE(workspace.guards_intact());
  }
}

// The bits of the host's model at widths of real models, for the last tokens of many, which are what a wrong offset of
// scales reaches first.
TEST(ExpertGemmFp8, BitsOfTheModelAtRealWidths) {
  ThreadPool threads(available_processors());
  DeviceActivation activation;
  const int32_t widths[][2] = {{2048, 768}, {2880, 2880}, {4096, 1408}, {7168, 352}, {2048, 80}};
  for (const auto& [hidden, intermediate] : widths) {
    for (const auto format : {moe::WeightFormat::fp8_block, moe::WeightFormat::fp8_channel}) {
      LayerCase c = fp8_case(hidden, intermediate, 4, 2, 3);
      c.format = format;
      c.bias = hidden == 2880;
      const LayerData data(c);
      const moe::ExactLayer layer(data.config(), data.weights(), data.inputs(), &threads);
      EXPECT_EQ(difference_of("out", LayerRun(data).run(), layer.out(activation.function()), c.hidden), "") << c;
    }
  }
}

// Shards that begin inside a block of scales: the bits of the host's model, which are those of the whole layer's
// columns (Fp8Layer.AShardThatBeginsInsideABlockHasTheWholesBits). Few rows and many, both tilings, all orders of rows.
TEST(ExpertGemmFp8, ShardsThatBeginInsideABlock) {
  struct Part {
    int64_t begin, count;
  };
  constexpr Part kParts[] = {{96, 96}, {64, 64}, {16, 112}, {112, 16}, {32, 352}, {352, 48}, {336, 64}};
  ThreadPool threads(available_processors());
  DeviceActivation activation;
  for (const auto order : {GateUpOrder::gate_first, GateUpOrder::up_first, GateUpOrder::interleaved}) {
    for (const int32_t tokens : {3, 70}) {
      LayerCase c = fp8_case(400, 400, 5, 2, tokens);
      c.order = order;
      c.gated = order != GateUpOrder::up_first || tokens == 3;
      if (!c.gated) c.order = GateUpOrder::gate_first;
      c.bias = tokens == 70;
      if (!c.gated) c.activation = {ActivationKind::gelu_tanh};
      const LayerData data(c);
      LayerRun whole(data);
      for (const Part& part : kParts) {
        const Shard shard(data, part.begin, part.count);
        const auto expected =
            moe::ExactLayer(shard.config, shard.weights, data.inputs(), &threads).out(activation.function());
        std::vector<std::unique_ptr<GuardedBuffer>> kept;
        const auto on_device = [&](const auto& values) -> const void* {
          if (values.size() == 0) return nullptr;
          kept.push_back(std::make_unique<GuardedBuffer>(values.size() * sizeof(*values.data())));
          TESSERA_CUDA_CHECK(
              cudaMemcpy(kept.back()->data(), values.data(), kept.back()->bytes(), cudaMemcpyHostToDevice));
          return kept.back()->data();
        };
        moe::LayerWeights weights;
        weights.gate_up = on_device(shard.gate_up);
        weights.down = on_device(shard.down);
        weights.gate_up_bias = on_device(shard.bias);
        weights.down_bias = whole.weights().down_bias;
        weights.gate_up_scale = on_device(shard.scales);
        weights.down_scale = on_device(shard.down_scales);
        for (const int32_t cluster_size : {1, 2}) {
          moe::LaunchPolicy policy;
          policy.cluster_size = cluster_size;
          const moe::CudaLayer layer(shard.config, weights, policy);
          GuardedBuffer workspace(layer.workspace_bytes(tokens));
          workspace.poison();
          whole.out().poison();
          layer.run(whole.inputs(), workspace.data(), workspace.bytes(), nullptr);
          TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
          EXPECT_EQ(difference_of("out", whole.out().download<uint16_t>(expected.size()), expected, c.hidden), "")
              << c << ", columns from " << part.begin << ", " << part.count << " of them, clusters of " << cluster_size;
          EXPECT_TRUE(workspace.guards_intact() && whole.out().guards_intact());
        }
      }
    }
  }
}

// Weights of more elements than 32 bits count, signed for down and unsigned for gate and up: experts at the beginning,
// in the middle and at the end give the bits of a layer that has no others.
TEST(ExpertGemmFp8, WeightsOfMoreElementsThan32BitsCount) {
  constexpr int32_t kExperts = 130;
  constexpr int32_t kPlaces[] = {0, 67, kExperts - 1};
  static_assert(int64_t{kExperts} * 4096 * 4096 > int64_t{1} << 31 && int64_t{kExperts} * 2 * 4096 * 4096 > int64_t{1}
                                                                                                                << 32);
  size_t free_bytes = 0, all_bytes = 0;
  TESSERA_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
  if (free_bytes < size_t{9} << 30) GTEST_SKIP() << free_bytes << " bytes are free, 9 GiB are needed";
  for (const auto format : {moe::WeightFormat::fp8_block, moe::WeightFormat::fp8_channel}) {
    LayerCase c = fp8_case(4096, 4096, 3, 2, 5);
    c.format = format;
    const LayerData data(c);
    LayerRun small(data);
    moe::LayerConfig config = data.config();
    config.num_experts = kExperts;
    moe::LayerWeights weights = small.weights();
    std::vector<cuda::DeviceBytes> kept;
    const auto spread = [&](const void* moe::LayerWeights::*tensor, size_t bytes_of_three) {
      const size_t bytes = bytes_of_three / 3;
      cuda::DeviceBytes& memory = kept.emplace_back(bytes * kExperts);
      TESSERA_CUDA_CHECK(cudaMemset(memory.data(), 0x7F, memory.bytes()));  // codes of NaN, scales that are none
      for (size_t i = 0; i < 3; ++i)
        TESSERA_CUDA_CHECK(cudaMemcpy(memory.at(static_cast<size_t>(kPlaces[i]) * bytes),
                                      static_cast<const std::byte*>(weights.*tensor) + i * bytes, bytes,
                                      cudaMemcpyDeviceToDevice));
      weights.*tensor = memory.data();
    };
    spread(&moe::LayerWeights::gate_up, data.gate_up().size());
    spread(&moe::LayerWeights::down, data.down().size());
    spread(&moe::LayerWeights::gate_up_scale, data.gate_up_scale().size());
    spread(&moe::LayerWeights::down_scale, data.down_scale().size());
    const auto expected = small.run();
    std::vector<int32_t> ids;
    for (const int32_t id : small.host_ids()) ids.push_back(kPlaces[id]);
    small.set_ids(ids);
    const bool blocks = format == moe::WeightFormat::fp8_block;
    for (const char* kernel : {blocks ? "expert_gemm_rows_fp8" : "expert_gemm_rows_fp8_channel",
                               blocks ? "expert_gemm_fp8" : "expert_gemm_fp8_channel"}) {
      moe::LaunchPolicy policy;
      policy.kernel = kernel;
      const moe::CudaLayer layer(config, weights, policy);
      GuardedBuffer workspace(layer.workspace_bytes(c.tokens));
      small.out().poison();
      layer.run(small.inputs(), workspace.data(), workspace.bytes(), nullptr);
      TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
      EXPECT_EQ(difference_of("out", small.out().download<uint16_t>(expected.size()), expected, c.hidden), "")
          << c << ", " << kernel;
    }
  }
}

// A token's output depends on the token alone: the rows of every batch are those of the largest.
TEST(ExpertGemmFp8, BitsOfARowDoNotDependOnTheBatch) {
  const LayerCase largest = fp8_case(208, 144, 5, 2, 300, "random");
  const LayerData all(largest);
  LayerRun whole(all);
  const auto expected = whole.run();
  const moe::CudaLayer layer(whole.config(), whole.weights());
  GuardedBuffer workspace(layer.workspace_bytes(largest.tokens));
  const auto row = static_cast<size_t>(largest.hidden);
  for (int32_t tokens = 1; tokens <= largest.tokens; tokens += tokens < 140 ? 1 : 13) {
    workspace.poison();
    moe::LayerInputs inputs = whole.inputs();
    inputs.num_tokens = tokens;
    whole.out().poison();
    layer.run(inputs, workspace.data(), workspace.bytes(), nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    const size_t count = row * static_cast<size_t>(tokens);
    const auto got = whole.out().download<uint16_t>(count);
    ASSERT_TRUE(std::equal(got.begin(), got.end(), expected.begin())) << tokens;
  }
  EXPECT_TRUE(workspace.guards_intact());
}

// Calls of several sizes on one workspace, none of which is cleared between: scales of an earlier call stand where a
// later one has fewer rows.
TEST(ExpertGemmFp8, WhatAnEarlierCallLeftDoesNotMatter) {
  std::vector<std::unique_ptr<LayerRun>> runs;
  for (const int32_t tokens : {700, 17, 1, 256, 3, 129})
    runs.push_back(std::make_unique<LayerRun>(LayerData(fp8_case(256, 320, 16, 4, tokens))));
  std::vector<std::vector<uint16_t>> expected;
  size_t bytes = 0;
  for (const auto& run : runs) {
    expected.push_back(run->run());
    bytes = std::max(bytes, moe::CudaLayer(run->config(), run->weights()).workspace_bytes(run->inputs().num_tokens));
  }
  GuardedBuffer workspace(bytes);
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    const size_t i = random() % runs.size();
    LayerRun& run = *runs[i];
    const moe::CudaLayer layer(run.config(), run.weights());
    run.out().poison();
    layer.run(run.inputs(), workspace.data(), workspace.bytes(), nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    ASSERT_EQ(run.out().download<uint16_t>(expected[i].size()), expected[i]) << i << ", round " << round;
  }
}

// An odd number of column blocks: one CTA of a pair has nothing to do, and must not read before the first row. Whatever
// lies there, in the workspace, would be taken for a token.
TEST(ExpertGemmFp8, ACtaWithoutAColumnBlockReadsNoRow) {
  for (const int32_t intermediate : {80, 320, 2880}) {
    const LayerCase c = fp8_case(400, intermediate, 4, 2, 7);
    LayerRun run((LayerData(c)));
    const auto expected = run.run();
    const moe::CudaLayer layer(run.config(), run.weights());
    GuardedBuffer workspace(layer.workspace_bytes(c.tokens));
    for (const int byte : {0x7F, 0x3F, 0x80}) {
      TESSERA_CUDA_CHECK(cudaMemset(workspace.data(), byte, workspace.bytes()));
      run.out().poison();
      layer.run(run.inputs(), workspace.data(), workspace.bytes(), nullptr);
      TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
      EXPECT_EQ(run.out().download<uint16_t>(expected.size()), expected) << c << ", bytes " << byte;
    }
  }
}

TEST(ExpertGemmFp8, ReplaysWithOtherRouting) {
  const LayerCase c = fp8_case(256, 192, 12, 3, 200);
  LayerRun run((LayerData(c)));
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(c.tokens));
  const cuda::Stream stream;
  CapturedGraph graph(stream.get(),
                      [&] { layer.run(run.inputs(), workspace.data(), workspace.bytes(), stream.get()); });
  for (int replay = 0; replay < 200; ++replay) {
    LayerCase other = c;
    other.routing =
        std::vector<const char*>{"random", "first", "few", "worst", "zipf"}[static_cast<size_t>(replay % 5)];
    run.set_ids(ids_of(other, static_cast<uint64_t>(replay)));
    const auto expected = run.run();
    run.out().poison();
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    graph.replay(stream.get());
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
    ASSERT_EQ(run.out().download<uint16_t>(expected.size()), expected) << replay;
  }
}

// Small layers for the sanitizers: partial tiles, an expert without rows, both warpgroups and one alone.
TEST(ExpertGemmFp8Small, Layers) {
  for (const int32_t tokens : {1, 40, 130}) {
    LayerCase c = fp8_case(144, 208, 4, 2, tokens, "few");
    for (const auto format : {moe::WeightFormat::fp8_block, moe::WeightFormat::fp8_channel}) {
      c.format = format;
      c.round_like_engines = tokens == 40;
      if (format == moe::WeightFormat::fp8_channel) c.x_scales = tokens == 40 ? 1 : tokens == 130 ? kEachExpert : 0;
      LayerRun run((LayerData(c)));
      expect_right(run, c);
      expect_right(run, c, {batching::TaskOrder::natural, 3, 1, 0});
    }
  }
}

}  // namespace
}  // namespace tessera::testing
