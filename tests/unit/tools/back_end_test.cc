// Which device and which precision the options choose, on machines that are made up.
#include "back_end.h"

#include <gtest/gtest.h>

#include <limits>

#include "unit/io/io_test_util.h"

namespace tessera::cli {
namespace {

using classifier::Form;
using classifier::LayerPrecision;
using classifier::Precision;
using testing::error_of;

Devices no_gpu() { return {.gpus = {}, .why_none = "no driver", .cpu_multiplies_bf16 = true}; }

/// GPUs 0 and 2 can be used, 1 cannot.
Devices three_gpus() {
  return {.gpus = {{.index = 0, .name = "H100", .major = 9, .minor = 0, .memory_bytes = 80},
                   {.index = 1, .name = "A100", .major = 8, .minor = 0, .memory_bytes = 40},
                   {.index = 2, .name = "H200", .major = 9, .minor = 0, .memory_bytes = 140}},
          .why_none = "",
          .cpu_multiplies_bf16 = true};
}

Devices unusable_gpu() {
  Devices devices = three_gpus();
  devices.gpus = {devices.gpus[1]};
  return devices;
}

std::vector<int> chosen(const BackEndOptions& options, const Devices& devices) {
  std::vector<int> indices;
  for (const auto& gpu : select_back_end(options, devices).gpus) indices.push_back(gpu.index);
  return indices;
}

std::string refusal(const BackEndOptions& options, const Devices& devices) {
  return error_of([&] { select_back_end(options, devices); });
}

TEST(BackEnd, AutoTakesEveryUsableGpu) {
  EXPECT_EQ(chosen({}, three_gpus()), (std::vector<int>{0, 2}));
  EXPECT_EQ(select_back_end({}, three_gpus()).why_cpu, "");
}

TEST(BackEnd, AutoTakesTheCpuAndSaysWhy) {
  EXPECT_FALSE(select_back_end({}, no_gpu()).on_gpu());
  EXPECT_EQ(select_back_end({}, no_gpu()).why_cpu, "no driver");
  EXPECT_FALSE(select_back_end({}, unusable_gpu()).on_gpu());
  EXPECT_EQ(select_back_end({}, unusable_gpu()).why_cpu, "GPU 1 (A100): compute capability 8.0, expected 9.0 (Hopper)");
  const BackEnd oracle = select_back_end({.precision = "fp64"}, three_gpus());
  EXPECT_FALSE(oracle.on_gpu());
  EXPECT_EQ(oracle.why_cpu, "fp64, the oracle, runs there");
  EXPECT_EQ(oracle.cpu_precision, Precision::fp64);
}

TEST(BackEnd, CpuIsTheUsersChoice) {
  const BackEnd back_end = select_back_end({.device = "cpu"}, three_gpus());
  EXPECT_FALSE(back_end.on_gpu());
  EXPECT_EQ(back_end.why_cpu, "");
}

TEST(BackEnd, GpusByNumberInTheOrderGiven) {
  EXPECT_EQ(chosen({.device = "cuda"}, three_gpus()), (std::vector<int>{0, 2}));
  EXPECT_EQ(chosen({.device = "cuda:2"}, three_gpus()), (std::vector<int>{2}));
  EXPECT_EQ(chosen({.device = "cuda:2,0"}, three_gpus()), (std::vector<int>{2, 0}));
}

TEST(BackEnd, GpusThatCannotBeHad) {
  EXPECT_EQ(refusal({.device = "cuda"}, no_gpu()), "--device: got 'cuda', expected auto or cpu: no driver");
  EXPECT_EQ(refusal({.device = "cuda:0"}, no_gpu()), "--device: got 'cuda:0', expected auto or cpu: no driver");
  EXPECT_EQ(refusal({.device = "cuda"}, unusable_gpu()),
            "--device: got 'cuda', expected auto or cpu: GPU 1 (A100): compute capability 8.0, expected 9.0 (Hopper)");
  EXPECT_EQ(refusal({.device = "cuda:0,1"}, three_gpus()),
            "--device: got GPU 1 (A100), expected one that can be used: compute capability 8.0, expected 9.0 (Hopper)");
  EXPECT_EQ(refusal({.device = "cuda:7"}, three_gpus()),
            "--device: got 'cuda:7', expected what this machine has: GPU 0 (H100), GPU 1 (A100), GPU 2 (H200)");
  EXPECT_EQ(refusal({.device = "cuda:2,0,2"}, three_gpus()),
            "--device: got 'cuda:2,0,2', which names GPU 2 twice, expected each GPU once");
}

TEST(BackEnd, DevicesThatAreNoWords) {
  for (const char* device : {"", "gpu", "CUDA", "cuda0", "cpu:0", "cuda;0", "auto,cpu"}) {
    EXPECT_EQ(
        refusal({.device = device}, three_gpus()),
        "--device: got '" + std::string(device) + "', expected auto, cpu, cuda, or GPUs by number as in cuda:0,2");
  }
  for (const char* device : {"cuda:", "cuda:x", "cuda:0,", "cuda:,0", "cuda:-1", "cuda: 0", "cuda:0x", "cuda:+1",
                             "cuda:4294967296", "cuda:99999999999999999999", "cuda:0,,2"}) {
    EXPECT_EQ(refusal({.device = device}, three_gpus()),
              "--device: got '" + std::string(device) + "', expected numbers of GPUs between commas, as in cuda:0,2");
  }
}

TEST(BackEnd, PrecisionOnTheCpu) {
  const auto precision = [](const std::string& name, bool multiplies_bf16) {
    Devices devices = no_gpu();
    devices.cpu_multiplies_bf16 = multiplies_bf16;
    return select_back_end({.precision = name}, devices).cpu_precision;
  };
  for (const bool multiplies_bf16 : {false, true}) {
    EXPECT_EQ(precision("default", multiplies_bf16), Precision::fp32);
    EXPECT_EQ(precision("auto", multiplies_bf16), multiplies_bf16 ? Precision::bf16 : Precision::fp32);
    EXPECT_EQ(precision("fp32", multiplies_bf16), Precision::fp32);
    EXPECT_EQ(precision("bf16", multiplies_bf16), Precision::bf16);
    EXPECT_EQ(precision("fp64", multiplies_bf16), Precision::fp64);
  }
  EXPECT_EQ(refusal({.device = "cpu", .precision = "fp16"}, three_gpus()),
            "--precision: got 'fp16' on the CPU, expected bf16 or fp32");
  EXPECT_EQ(refusal({.precision = "fp16"}, no_gpu()),
            "--precision: got 'fp16' on the CPU, expected bf16 or fp32 (the CPU, because: no driver)");
}

TEST(BackEnd, PrecisionOnAGpu) {
  const auto precision = [](const std::string& name) {
    return select_back_end({.device = "cuda", .precision = name}, three_gpus()).gpu_precision;
  };
  const auto uniform = [](Precision p) { return LayerPrecision{.convolutions = p, .experts = p, .head = p}; };
  EXPECT_EQ(precision("default"), uniform(Precision::fp16));
  EXPECT_EQ(precision("auto"), uniform(Precision::fp16));
  EXPECT_EQ(precision("fp16"), uniform(Precision::fp16));
  EXPECT_EQ(precision("bf16"), uniform(Precision::bf16));
  EXPECT_EQ(precision("fp32"), uniform(Precision::fp32));
  EXPECT_EQ(refusal({.device = "cuda", .precision = "fp64"}, three_gpus()),
            "--precision: got 'fp64' on a GPU, expected fp16, bf16 or fp32, or --device cpu: the oracle runs there");
  for (const char* word : {"fp8", "", "FP16", "half"}) {
    EXPECT_EQ(refusal({.precision = word}, three_gpus()),
              "--precision: got '" + std::string(word) + "', expected default, auto, fp16, bf16, fp32 or fp64");
  }
}

TEST(BackEnd, PrecisionByLayer) {
  const BackEnd back_end =
      select_back_end({.precision = "bf16", .layer_precision = "head=fp32,convolutions=fp16"}, three_gpus());
  EXPECT_EQ(back_end.gpu_precision,
            (LayerPrecision{.convolutions = Precision::fp16, .experts = Precision::bf16, .head = Precision::fp32}));
  EXPECT_EQ(precision_name(back_end.gpu_precision), "convolutions fp16, experts bf16, head fp32");
  for (const char* list : {"head", "head=", "=fp16", "head=fp64", "head=fp8", "gate=fp16", "head=fp16,", "head:fp16",
                           "head=fp16 experts=fp16"}) {
    EXPECT_TRUE(refusal({.layer_precision = list}, three_gpus()).starts_with("--layer-precision: got '")) << list;
  }
  EXPECT_EQ(refusal({.layer_precision = "head=fp16,head=fp32"}, three_gpus()),
            "--layer-precision: got the layer 'head' twice, expected it once");
}

TEST(BackEnd, TheCoarsestPrecisionIsJudged) {
  const auto coarsest = [](const std::string& precision, const std::string& layers) {
    return select_back_end({.device = "cuda", .precision = precision, .layer_precision = layers}, three_gpus())
        .coarsest_precision();
  };
  EXPECT_EQ(coarsest("fp32", ""), Precision::fp32);
  EXPECT_EQ(coarsest("fp32", "head=fp16"), Precision::fp16);
  EXPECT_EQ(coarsest("fp16", "experts=bf16"), Precision::bf16);
  EXPECT_EQ(coarsest("bf16", "convolutions=fp32,experts=fp32"), Precision::bf16);
  EXPECT_EQ(select_back_end({.device = "cpu", .precision = "bf16"}, three_gpus()).coarsest_precision(),
            Precision::bf16);
}

TEST(BackEnd, GpuOptionsAreUsedThereAndRefusedOnTheCpu) {
  const BackEnd back_end = select_back_end({.form = "dft", .expert_threshold = 0.25}, three_gpus());
  EXPECT_EQ(back_end.form, Form::dft);
  EXPECT_EQ(back_end.expert_threshold, 0.25);
  EXPECT_EQ(
      refusal({.form = "dft"}, no_gpu()),
      "--form: got 'dft' on the CPU, expected auto, as forms are chosen on GPUs only (the CPU, because: no driver)");
  EXPECT_EQ(refusal({.device = "cpu", .layer_precision = "head=fp32"}, three_gpus()),
            "--layer-precision: got 'head=fp32' on the CPU, expected --precision, as layers differ on GPUs only");
  EXPECT_EQ(refusal({.device = "cpu", .expert_threshold = 0.5}, three_gpus()),
            "--expert-threshold: got 0.5 on the CPU, expected 0, as experts are skipped on GPUs only");
}

TEST(BackEnd, ArithmeticIsWhatChangesBits) {
  const auto arithmetic = [](const BackEndOptions& options) {
    return describe_arithmetic(select_back_end(options, three_gpus()));
  };
  EXPECT_EQ(arithmetic({}), "fp16, form auto");
  EXPECT_EQ(arithmetic({.device = "cuda:2", .precision = "auto"}), arithmetic({}));
  EXPECT_EQ(arithmetic({.device = "cpu"}), "fp32");
  EXPECT_EQ(arithmetic({.device = "cpu", .precision = "auto"}), "bf16");
  EXPECT_EQ(arithmetic({.layer_precision = "head=fp32", .form = "dft", .expert_threshold = 0.125}),
            "convolutions fp16, experts fp16, head fp32, form dft, experts below 0.125 skipped");
}

TEST(BackEnd, WordsAreCheckedOnEveryMachine) {
  EXPECT_EQ(refusal({.form = "fft"}, no_gpu()), "--form: got 'fft', expected auto, direct, dft, distinct or vocab");
  for (const double threshold : {-0.1, 1.0, 2.0, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_TRUE(refusal({.expert_threshold = threshold}, no_gpu()).starts_with("--expert-threshold: got "));
    EXPECT_TRUE(refusal({.expert_threshold = threshold}, three_gpus()).starts_with("--expert-threshold: got "));
  }
}

TEST(BackEnd, NamesOfGpusAreEscaped) { EXPECT_EQ(gpu_name({.index = 3, .name = "a\x1b[31m"}), "GPU 3 (a\\x1b[31m)"); }

}  // namespace
}  // namespace tessera::cli
