// Layers of e4m3 weights in blocks, beside what the battery asks of them: the quantising kernel's bits, rows whose bits
// depend on nothing else, replays with other routing, what the workspace held before.
#include <algorithm>
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

namespace tessera::testing {
namespace {

LayerCase fp8_case(int32_t hidden, int32_t intermediate, int32_t experts, int32_t top_k, int32_t tokens,
                   const char* routing = "random") {
  LayerCase c{hidden, intermediate, experts, top_k, tokens, routing};
  c.format = moe::WeightFormat::fp8_block;
  return c;
}

// Rows of a few elements of every kind: normal ones, tiny, huge, NaN, infinities; widths that end inside a group.
TEST(QuantizeRows, HasTheBitsOfTheHosts) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const int32_t columns : {16, 112, 128, 144, 256, 400, 2880}) {
      for (const int32_t rows : {1, 3, 65, 300}) {
        std::vector<uint16_t> values(static_cast<size_t>(rows) * static_cast<size_t>(columns));
        for (uint16_t& value : values) {
          const float scale = std::ldexp(1.0f, static_cast<int>(random() % 40) - 30);
          const auto kind = random() % 4000;
          float number = normal(random) * scale;
          if (kind == 0) number = std::numeric_limits<float>::quiet_NaN();
          if (kind == 1) number = std::numeric_limits<float>::infinity();
          if (kind == 2) number = -0.0f;
          value = dtype == DType::bf16 ? f32_to_bf16(number) : f32_to_f16(number);
        }
        const auto groups = static_cast<size_t>((columns + 127) / 128);
        std::vector<uint8_t> codes(values.size());
        std::vector<float> scales(static_cast<size_t>(rows) * groups);
        moe::quantize_rows(values.data(), dtype, {rows, columns}, codes.data(), scales.data());
        // Two slots: the rows backwards, and every other one of a second set.
        const int32_t stride = 2 * rows + 5;
        std::vector<int32_t> token_row;
        for (int32_t t = 0; t < rows; ++t) {
          token_row.push_back(rows - 1 - t);
          token_row.push_back(t % 2 == 0 ? rows + t : -1);
        }
        GuardedBuffer x(2 * values.size()), places(sizeof(int32_t) * token_row.size()), device_codes(2 * codes.size()),
            device_scales(sizeof(float) * groups * static_cast<size_t>(stride));
        x.upload(values);
        places.upload(token_row);
        device_codes.poison();
        device_scales.poison();
        kernels::quantize_rows::launch(
            {dtype, x.data(), static_cast<const int32_t*>(places.data()), device_codes.data(),
             static_cast<float*>(device_scales.data()), rows, 2, columns, stride},
            nullptr);
        TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
        const auto got_codes = device_codes.download<uint8_t>(2 * codes.size());
        const auto got = device_scales.download<float>(groups * static_cast<size_t>(stride));
        const auto width = static_cast<int64_t>(columns);
        for (size_t slot = 0; slot < token_row.size(); ++slot) {
          const auto t = static_cast<int64_t>(slot / 2);
          const int32_t row = token_row[slot];
          if (row < 0) continue;
          ASSERT_TRUE(
              std::equal(codes.begin() + t * width, codes.begin() + (t + 1) * width, got_codes.begin() + row * width))
              << rows << " x " << columns << ", token " << t << ", row " << row;
          for (size_t g = 0; g < groups; ++g) {
            const float expected = scales[static_cast<size_t>(t) * groups + g];
            const float scale = got[g * static_cast<size_t>(stride) + static_cast<size_t>(row)];
            ASSERT_TRUE(std::isnan(expected) ? std::isnan(scale) : expected == scale)
                << rows << " x " << columns << ", row " << row << ", group " << g << ": " << scale << " for "
                << expected;
          }
        }
        EXPECT_TRUE(device_codes.guards_intact() && device_scales.guards_intact());
      }
    }
  }
}

// Every slot's row has the token's codes and scales as they were given, numbers that no quantising makes too.
TEST(QuantizeRows, CopiesTokensThatAreQuantised) {
  std::mt19937 random(12);
  for (const int32_t columns : {16, 112, 128, 144, 400, 2880}) {
    for (const int32_t rows : {1, 3, 65}) {
      const auto width = static_cast<int64_t>(columns);
      const auto groups = static_cast<size_t>((columns + 127) / 128);
      std::vector<uint8_t> codes(static_cast<size_t>(rows * width));
      std::vector<float> scales(static_cast<size_t>(rows) * groups);
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
      for (float& scale : scales) scale = std::ldexp(1.0f, static_cast<int>(random() % 200) - 100);
      const int32_t stride = 2 * rows + 5;
      std::vector<int32_t> token_row;
      for (int32_t t = 0; t < rows; ++t) {
        token_row.push_back(rows - 1 - t);
        token_row.push_back(t % 2 == 0 ? rows + t : -1);
      }
      GuardedBuffer x(codes.size()), x_scales(sizeof(float) * scales.size()),
          places(sizeof(int32_t) * token_row.size()), device_codes(2 * codes.size()),
          device_scales(sizeof(float) * groups * static_cast<size_t>(stride));
      x.upload(codes);
      x_scales.upload(scales);
      places.upload(token_row);
      device_codes.poison();
      device_scales.poison();
      kernels::quantize_rows::launch({.dtype = DType::bf16,
                                      .tokens = x.data(),
                                      .token_row = static_cast<const int32_t*>(places.data()),
                                      .codes = device_codes.data(),
                                      .scales = static_cast<float*>(device_scales.data()),
                                      .num_tokens = rows,
                                      .num_slots = 2,
                                      .columns = columns,
                                      .scale_stride = stride,
                                      .token_scales = static_cast<const float*>(x_scales.data())},
                                     nullptr);
      TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
      const auto got_codes = device_codes.download<uint8_t>(2 * codes.size());
      const auto got = device_scales.download<float>(groups * static_cast<size_t>(stride));
      for (size_t slot = 0; slot < token_row.size(); ++slot) {
        const auto t = static_cast<int64_t>(slot / 2);
        const int32_t row = token_row[slot];
        if (row < 0) continue;
        ASSERT_TRUE(
            std::equal(codes.begin() + t * width, codes.begin() + (t + 1) * width, got_codes.begin() + row * width))
            << rows << " x " << columns << ", token " << t << ", row " << row;
        for (size_t g = 0; g < groups; ++g)
          ASSERT_EQ(got[g * static_cast<size_t>(stride) + static_cast<size_t>(row)],
                    scales[static_cast<size_t>(t) * groups + g])
              << rows << " x " << columns << ", row " << row << ", group " << g;
      }
      EXPECT_TRUE(device_codes.guards_intact() && device_scales.guards_intact());
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
    LayerCase c = fp8_case(hidden, intermediate, 4, 2, 3);
    c.bias = hidden == 2880;
    const LayerData data(c);
    const moe::ExactLayer layer(data.config(), data.weights(), data.inputs(), &threads);
    EXPECT_EQ(difference_of("out", LayerRun(data).run(), layer.out(activation.function()), c.hidden), "") << c;
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
    const LayerCase c = fp8_case(144, 208, 4, 2, tokens, "few");
    LayerRun run((LayerData(c)));
    expect_right(run, c);
    expect_right(run, c, {batching::TaskOrder::natural, 3, 1, 0});
  }
}

}  // namespace
}  // namespace tessera::testing
