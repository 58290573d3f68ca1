// On what a model runs, and how its products are rounded: decided from the options and from what this machine has,
// before anything is loaded.
//
//   const BackEnd back_end = select_back_end(options, find_devices());
//   if (back_end.on_gpu()) ...
//
// GPU options where the model runs on the CPU are errors, never ignored.
#pragma once

#include <string>
#include <vector>

#include "tessera/classifier/classifier.h"
#include "tessera/classifier/cuda_classifier.h"
#include "tessera/cuda/device.h"

namespace tessera::cli {

/// As given on the command line.
struct BackEndOptions {
  std::string device = "auto";        ///< auto, cpu, cuda, cuda:0,2
  std::string precision = "default";  ///< default, auto, fp16, bf16, fp32, fp64
  std::string layer_precision = {};   ///< "convolutions=fp32,head=bf16": other than `precision`, on GPUs
  std::string form = "auto";          ///< as classifier::parse_form
  double expert_threshold = 0;        ///< in [0, 1)
};

/// What there is to choose from.
struct Devices {
  std::vector<cuda::DeviceFacts> gpus;
  std::string why_none;  ///< no GPU at all: the reason
  bool cpu_multiplies_bf16 = false;
};
Devices find_devices();

struct BackEnd {
  std::vector<cuda::DeviceFacts> gpus;  ///< empty: the CPU
  std::string why_cpu;                  ///< where "auto" came to the CPU: the reason
  classifier::Precision cpu_precision = classifier::Precision::fp32;
  classifier::LayerPrecision gpu_precision;
  classifier::Form form = classifier::Form::automatic;
  double expert_threshold = 0;

  bool on_gpu() const { return !gpus.empty(); }
  /// The one with the widest error among the precisions in use: bf16, then fp16, then fp32.
  classifier::Precision coarsest_precision() const;
};

/// Throws Error naming the option: an unknown word, a GPU that is not there or not usable or named twice, fp16 on the
/// CPU, fp64 on a GPU, GPU options on the CPU.
BackEnd select_back_end(const BackEndOptions& options, const Devices& devices);

/// "fp32", "bf16", "fp64", "fp16".
std::string precision_name(classifier::Precision precision);

/// "fp16", or "convolutions fp32, experts fp16, head bf16" where they differ.
std::string precision_name(const classifier::LayerPrecision& precision);

/// What decides the bits of the results, the input and the device's kind apart: "fp32", "fp16, form auto",
/// "fp16, form dft, experts below 0.1 skipped". The same for options that come to the same.
std::string describe_arithmetic(const BackEnd& back_end);

/// "GPU 0 (NVIDIA H100 80GB HBM3)".
std::string gpu_name(const cuda::DeviceFacts& gpu);

}  // namespace tessera::cli
